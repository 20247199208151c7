"""An index of the command line: each option that was given, with its file and line.

Built before anything heavy is imported. It reports a missing file or invalid YAML at once, and it
tells where a value that the parser refuses was written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from peft_lightning.messages import UserError, did_you_mean

CONFIG_OPTIONS = ("-c", "--config")
YAML = (".yaml", ".yml")
CLASS_SECTIONS = ("model", "data", "trainer")  # whose values can be YAML files of their own


@dataclass(frozen=True)
class ConfigValue:
    """A value and the place where it was given.

    Args:
        value: The value as YAML reads it; a string if it is an option of the command line.
        where: The file with the line, or the option: ``configs/lora.yaml, line 3``, ``--data.val``.
        place: The key with positions in lists, such as ``trainer.callbacks[0].monitor``.
        folder: Folder that relative paths of YAML files within ``value`` refer to.
    """

    value: Any
    where: str
    place: str
    folder: Path = Path()


class _Loader(yaml.SafeLoader):
    """Reads 1e-4 as a number, as YAML 1.2 and jsonargparse do."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)$"),
    list("-+0123456789"),
)


@dataclass
class ConfigIndex:
    """The values of config files and options, under dotted keys such as ``model.adapter.r``.

    ``init_args`` and the positions within lists are not part of a key.

    Args:
        entries: Keys and values in the order in which they were given; later ones override.
    """

    entries: list[tuple[str, ConfigValue]] = field(default_factory=list)

    def all(self, *keys: str) -> list[ConfigValue]:
        """Return the values of ``keys`` in the order in which they were given."""
        return [value for key, value in self.entries if key in keys]

    def get(self, key: str) -> ConfigValue | None:
        """Return the value of ``key`` that overrides the others, None if there is none."""
        return next(reversed(self.all(key)), None)

    def class_of(self, section: str) -> ConfigValue | None:
        """Return the class path of ``model`` or ``data``, None if no class was given."""
        names = self.all(section, f"{section}.class_path")
        names = [n for n in names if isinstance(n.value, str) and not is_yaml(n.value)]
        return names[-1] if names else None

    def add_file(self, path: Path, place: str = "") -> None:
        """Add a YAML file that holds a mapping, as the value of ``place``.

        Raises:
            UserError: If the file does not exist, is not YAML, or does not hold a mapping.
        """
        if not path.is_file():
            raise UserError(_missing_file(path))
        try:
            node = yaml.compose(path.read_text(), Loader=_Loader)
            if isinstance(node, yaml.MappingNode):
                self._add(place, node, path)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f", line {mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or error
            raise UserError(f"{path}{line}: this is not YAML: {problem}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not a YAML file: it is not text") from error
        if not isinstance(node, yaml.MappingNode):
            kind = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
            got = "is empty" if node is None else f"holds {kind}"
            sections = "'model:', 'data:', 'trainer:'"
            raise UserError(f"{path} {got}; expected sections such as {sections}")

    def add_option(self, option: str, value: str | None) -> None:
        """Add an option such as ``--model.adapter.r`` with its value as text."""
        key = option.removeprefix("--").removesuffix("+").replace(".init_args", "")
        if value is not None and value.startswith(("{", "[")):
            with suppress(yaml.YAMLError):  # then it is text, such as a prompt
                self._add(key, yaml.compose(value, Loader=_Loader), option)
                return
        self._append(ConfigValue(value, option, key))

    def _add(
        self, place: str, node: yaml.Node, source: Path | str, line: int | None = None
    ) -> None:
        """Add a node and all within it; ``source`` is its file, or its option."""
        if isinstance(node, yaml.MappingNode):
            _check_keys(place, node, source)
            merged = [v for k, v in node.value if k.tag == "tag:yaml.org,2002:merge"]
            for value in merged:  # before the others, which override it
                self._add(place, value, source)
            for name, value in node.value:
                if value not in merged:
                    self._add(_joined(place, name.value), value, source, name.start_mark.line)
        elif isinstance(node, yaml.SequenceNode):
            for i, item in enumerate(node.value):
                self._add(f"{place}[{i}]", item, source)
        value = _Loader("").construct_object(node, deep=True)
        if isinstance(source, str):
            self._append(ConfigValue(value, source, place))
        else:
            line = node.start_mark.line if line is None else line
            where = f"{source}, line {line + 1}"
            self._append(ConfigValue(value, where, place, source.parent))

    def _append(self, value: ConfigValue) -> None:
        key = re.sub(r"\[\d+\]", "", value.place)
        if key.split(".")[0] in CLASS_SECTIONS and is_yaml(value.value):
            with suppress(OSError):
                if (value.folder / value.value).is_file():
                    self.add_file(value.folder / value.value, value.place)
        self.entries.append((key, value))


def _check_keys(place: str, node: yaml.MappingNode, source: Path | str) -> None:
    """Check that no key is given twice: YAML would keep the last of them.

    Raises:
        UserError: If one is.
    """
    seen: set[str] = set()
    for name, _ in node.value:
        if name.tag != "tag:yaml.org,2002:merge" and str(name.value) in seen:
            in_file = not isinstance(source, str)
            where = f"{source}, line {name.start_mark.line + 1}" if in_file else source
            inside = f" in {place}" if place else ""
            raise UserError(f"{where}: {name.value!r} is given twice{inside}; leave one of them")
        seen.add(str(name.value))


def _joined(place: str, name: Any) -> str:
    name = str(name).removesuffix("+")
    if name == "init_args":
        return place
    return f"{place}.{name}" if place else name


def is_yaml(value: Any) -> bool:
    """Whether ``value`` is the name of a YAML file."""
    return isinstance(value, str) and value.endswith(YAML)


def read_arguments(args: list[str]) -> ConfigIndex:
    """Return the index of a command line.

    Args:
        args: Options; ``--config`` is followed by the name of a YAML file.

    Raises:
        UserError: If a config file does not exist, is not YAML, or does not hold a mapping, or if
            a word is not an option.
    """
    index = ConfigIndex()
    for option, value in split_options(args):
        if option in CONFIG_OPTIONS:
            if value is None:
                raise UserError(f"{option} needs the name of a YAML file")
            index.add_file(Path(value))
        elif option.startswith("--"):
            index.add_option(option, value)
        else:
            write = f"--config {value}" if is_yaml(value) else "--option value"
            raise UserError(f"unexpected {option or value!r}; options are written {write}")
    return index


def split_options(args: list[str]) -> Iterator[tuple[str, str | None]]:
    """Yield (option, value). The value is None if none follows, the option is "" before a word."""
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


def repeated_options(args: list[str]) -> list[tuple[str, list[str]]]:
    """Return the options that are given several times with different values, and those values.

    Options that add to a list, by ``+``, and those of its last member are none.
    """
    given: dict[str, list[str]] = {}
    options = list(split_options(args))
    lists = tuple(f"{option[:-1]}" for option, _ in options if option.endswith("+"))
    for option, value in options:
        in_list = any(option == name or option.startswith(f"{name}.") for name in lists)
        if option.endswith("+") or in_list or option in CONFIG_OPTIONS or value is None:
            continue
        given.setdefault(option, []).append(value)
    return [(option, values) for option, values in given.items() if len(set(values)) > 1]


def configs_first(args: list[str]) -> list[str]:
    """Return ``args`` with the config files before the options, so that the options override."""
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


def default_root(configs: Iterable[Any]) -> str:
    """Return ``runs/<name of the config file>``, the names joined by + if there are several."""
    stems = [Path(str(file)).stem for file in configs if file is not None]
    return str(Path("runs") / ("+".join(stems) or "default"))


def run_root(args: list[str], index: ConfigIndex) -> Path:
    """Return the folder of a run: ``trainer.default_root_dir``, or that of its config's name."""
    given = index.get("trainer.default_root_dir")
    if given is not None and given.value:
        return Path(str(given.value)).expanduser()
    return Path(default_root(v for option, v in split_options(args) if option in CONFIG_OPTIONS))


def _missing_file(path: Path) -> str:
    if path.is_dir():
        inside = sorted(p.name for p in path.glob("*.y*ml"))
        return f"--config {path} is a folder; give one of its files: {', '.join(inside) or 'none'}"
    others = [p for p in _yaml_files(path.parent) if p != path]
    names = [p.name for p in others]
    if hint := did_you_mean(path.name, names, most=3, show=lambda n: str(path.parent / n)):
        return f"there is no config file {path}{hint}"
    listed = ", ".join(map(str, others or _yaml_files(Path("configs"))))
    return f"there is no config file {path}" + (f"; there are: {listed}" if listed else "")


def _yaml_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.y*ml") if p.suffix in YAML)
