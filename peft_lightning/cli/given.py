"""What the user gave: YAML files with line numbers and options of the command line, unparsed.

Read before anything heavy is imported, for errors that need no model (a file that is not there, a
YAML mistake), for the module's class, and to say where a value stands when it is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from peft_lightning.messages import did_you_mean

CONFIG_OPTIONS = ("-c", "--config")
YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Given:
    """A value and where it stands.

    Args:
        value: A plain value, a list of ``Given`` or a dict of ``Given``.
        where: Words for an error message: ``configs/lora.yaml, line 3`` or ``--model.adapter.r``.
        folder: What relative paths of files within ``value`` refer to.
    """

    value: Any
    where: str
    folder: Path = Path()

    def plain(self) -> Any:
        """Return the value without places."""
        if isinstance(self.value, dict):
            return {key: given.plain() for key, given in self.value.items()}
        if isinstance(self.value, list):
            return [given.plain() for given in self.value]
        return self.value


class _Loader(yaml.SafeLoader):
    """Reads 1e-4 as a number, as YAML 1.2 and jsonargparse do."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)$"),
    list("-+0123456789"),
)


def read_given(args: list[str]) -> list[Given]:
    """Return the config files and options among ``args``, in order; each value is a dict.

    Raises:
        ValueError: If a config file is not there, is no YAML, or is no mapping.
    """
    found = []
    for option, value in options(args):
        if option in CONFIG_OPTIONS:
            if value is None:
                raise ValueError(f"{option} needs the name of a YAML file")
            found.append(read_config(Path(value)))
        elif option.startswith("--"):
            found.append(_nested(option, value))
        else:
            is_config = Path(str(value)).suffix in YAML
            write = f"--config {value}" if is_config else "--option value"
            raise ValueError(f"unexpected {option or value!r}; options are written {write}")
    return found


def options(args: list[str]) -> Iterator[tuple[str, str | None]]:
    """Yield (option, value): None where no value follows, ``""`` before a stray one."""
    i = 0
    while i < len(args):
        name, equals, value = args[i].partition("=")
        i += 1
        if not name.startswith("-"):
            yield "", args[i - 1]
        elif equals:
            yield name, value
        elif i < len(args) and not re.match(r"--?[a-zA-Z]", args[i]):
            yield name, args[i]
            i += 1
        else:
            yield name, None


def configs_first(args: list[str]) -> list[str]:
    """Return ``args`` with the config files before the options, which win over all of them."""
    files: list[str] = []
    rest: list[str] = []
    i = 0
    while i < len(args):
        if args[i] in CONFIG_OPTIONS:
            files += args[i : i + 2]
            i += 2
            continue
        (files if args[i].startswith("--config=") else rest).append(args[i])
        i += 1
    return files + rest


def read_config(path: Path) -> Given:
    """Read a YAML file that holds a mapping.

    Raises:
        ValueError: If it is not there, is no YAML, or is no mapping.
    """
    if not path.is_file():
        raise ValueError(_no_file(path))
    try:
        node = yaml.compose(path.read_text(), Loader=_Loader)
        given = _from_node(node, path) if node is not None else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise ValueError(f"{path}{line}: this is not YAML: {problem}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a YAML file: it holds no text") from error
    if given is None or not isinstance(given.value, dict):
        got = "is empty" if given is None else f"holds {_kind(given.value)}"
        raise ValueError(f"{path} {got}; expected sections such as 'model:', 'data:', 'trainer:'")
    return given


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"just {value!r}"


def _no_file(path: Path) -> str:
    if path.is_dir():
        inside = sorted(p.name for p in path.glob("*.y*ml"))
        return f"--config {path} is a folder; give one of its files: {', '.join(inside) or 'none'}"
    beside = [p for p in _yaml_files(path.parent) if p != path]
    names = [p.name for p in beside]
    if hint := did_you_mean(path.name, names, most=3, show=lambda n: str(path.parent / n)):
        return f"there is no config file {path}{hint}"
    listed = ", ".join(map(str, beside or _yaml_files(Path("configs"))))
    return f"there is no config file {path}" + (f"; there are: {listed}" if listed else "")


def _yaml_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.y*ml") if p.suffix in YAML)


def _from_node(node: yaml.Node, path: Path) -> Given:
    where = f"{path}, line {node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        members: dict[str, Given] = {}
        for key, value in node.value:
            member = _from_node(value, path)
            if key.tag == "tag:yaml.org,2002:merge" and isinstance(member.value, dict):
                members = {**member.value, **members}
                continue
            line = f"{path}, line {key.start_mark.line + 1}"
            members[str(key.value)] = Given(member.value, line, path.parent)
        return Given(members, where, path.parent)
    if isinstance(node, yaml.SequenceNode):
        return Given([_from_node(item, path) for item in node.value], where, path.parent)
    loader = _Loader("")
    return Given(loader.construct_object(node), where, path.parent)


def _nested(option: str, value: str | None) -> Given:
    """Turn ``--model.adapter.r 8`` into {model: {adapter: {r: 8}}}."""
    given = Given(value, option)
    if value is not None and value.startswith(("{", "[")):
        with suppress(yaml.YAMLError):  # then it is a text, such as a prompt
            given = _placed(_from_node(yaml.compose(value, Loader=_Loader), Path()), option)
    for key in reversed(option.removeprefix("--").removesuffix("+").split(".")):
        given = Given({key: given}, option)
    return given


def _placed(given: Given, where: str) -> Given:
    """Return ``given`` with all of it standing at ``where``."""
    value = given.value
    if isinstance(value, dict):
        value = {key: _placed(member, where) for key, member in value.items()}
    elif isinstance(value, list):
        value = [_placed(item, where) for item in value]
    return Given(value, where)


def module_class(given: list[Given]) -> Given | None:
    """Return the class path of the module if one is given, as an experiment's is; the last wins."""
    found = None
    for source in given:
        if "model" in source.value:
            model = source.value["model"]
            if isinstance(model.value, str) and Path(model.value).suffix in YAML:
                model = read_config(model.folder / model.value)
            if isinstance(model.value, dict) and "class_path" in model.value:
                model = model.value["class_path"]
            if isinstance(model.value, str):
                found = model
    return found


def option_given(given: list[Given], section: str, name: str) -> Given | None:
    """Return an option of a section such as ``trainer`` if it is given; the last wins."""
    found = None
    for source in given:
        options = source.value.get(section)
        if options and isinstance(options.value, str) and Path(options.value).suffix in YAML:
            options = read_config(options.folder / options.value)
        if options and isinstance(options.value, dict):
            found = options.value.get(name, found)
            arguments = options.value.get("init_args")  # of an experiment
            if arguments and isinstance(arguments.value, dict):
                found = arguments.value.get(name, found)
    return found


def trainer_option(given: list[Given], name: str) -> Given | None:
    """Return an option of the trainer if it is given; the last wins."""
    return option_given(given, "trainer", name)


def default_root(configs: Iterable[Any]) -> str:
    """Return ``runs/<name of the config file>``, the names joined by + if there are several."""
    stems = [Path(str(file)).stem for file in configs if file is not None]
    return str(Path("runs") / ("+".join(stems) or "default"))
