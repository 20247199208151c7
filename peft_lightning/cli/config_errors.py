"""Errors of jsonargparse as one line: the place, what is wrong, and the nearest right name."""

from __future__ import annotations

import re
import types
import typing
from dataclasses import dataclass
from typing import Any, NoReturn

from jsonargparse import ArgumentError, ArgumentParser

from peft_lightning.cli.class_lookup import class_bases, find_class, nearest
from peft_lightning.cli.config_index import CLASS_SECTIONS, ConfigIndex, ConfigValue, is_yaml
from peft_lightning.cli.foreign_names import ForeignName, foreign_name
from peft_lightning.messages import is_secret, without_secrets

COMMANDS = ("fit", "validate", "test", "predict")
CLASS_KEYS = {"class_path", "init_args", "dict_kwargs"}
NO_OPTIONS = ("help", "print_config", "print_shtab")
UNIONS = (typing.Union, types.UnionType)

# the messages of jsonargparse 4; that of a class within a class contains the one of the inner class
KEY = re.compile(r'Parser key "([^"]+)"')
UNKNOWN = re.compile(
    r"unrecognized arguments: --([^\s=]+)"
    r"|Option '([^']+)' is not accepted"
    r"|(?:Subcommand|Group) '[^']*' does not accept option '([^']+)'"
)
NO_VALUE = re.compile(r"argument (?:.*/)?--([^\s/:]+): expected one argument")
REQUIRED = re.compile(r"the following arguments are required: ([^\s,]+)")


class RecordingParser(ArgumentParser):
    """A parser that records its errors, and so do the parsers of classes within its options.

    jsonargparse creates those with the type of the outer parser, and passes on only the text of
    their errors, not which parser has raised them.
    """

    recorded: typing.ClassVar[list[tuple[RecordingParser, str]]] = []
    target: Any = None  # the class whose constructor's arguments it parses

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> list[str]:
        """Add the arguments of a class; a nested parser keeps the class as its target."""
        if len(args) < 2 and "nested_key" not in kwargs:
            self.target = args[0]
        return super().add_class_arguments(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Record an error and raise it."""
        self.recorded.append((self, message))
        super().error(message, ex)


@dataclass(frozen=True)
class _Fault:
    """The innermost error: the parser that raised it, its message, and where the parser stands.

    Args:
        command: The parser of the command.
        parser: The parser that raised the error; it has the options at this place.
        message: The message of this error alone.
        path: The dotted key of the class that is parsed; empty for the command itself.
        index: Everything that was given.
    """

    command: RecordingParser
    parser: RecordingParser
    message: str
    path: str
    index: ConfigIndex

    @property
    def is_nested(self) -> bool:
        return self.parser is not self.command

    def key(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def options(self, prefix: str = "") -> set[str]:
        """Return the names of the next level after ``prefix``, which ends with a dot."""
        keys = [a.dest for a in self.parser._actions if not a.dest.endswith(".help")]
        inside = {key.removeprefix(prefix).split(".")[0] for key in keys if key.startswith(prefix)}
        return inside.difference(NO_OPTIONS)


def explain(error: ArgumentError, parser: RecordingParser, index: ConfigIndex) -> str | None:
    """Return one line on an error of ``parser``, or None if the error is of an unknown kind.

    Args:
        error: The error of a parse, before which ``RecordingParser.recorded`` was cleared.
        parser: The parser of the command.
        index: What was given.
    """
    text = " ".join(str(error).split())
    recorded = [(p, " ".join(m.split())) for p, m in RecordingParser.recorded]
    inner, message = next(((p, m) for p, m in recorded if m in text), (parser, text))
    path = ".".join(KEY.findall(text[: text.find(message)]))
    if inner.target is None:  # of the program, whose options are the commands
        inner = parser
    return _explain(_Fault(parser, inner, message, path, index))


def _explain(fault: _Fault) -> str | None:
    if match := UNKNOWN.match(fault.message):
        return _unknown(fault, next(filter(None, match.groups())))
    if match := REQUIRED.match(fault.message):
        return _required(fault, match[1])
    if match := NO_VALUE.match(fault.message):
        return _wrong_value(fault, match[1].removesuffix("+"))
    if match := KEY.match(fault.message):
        return _wrong_value(fault, match[1])
    return None


def _unknown(fault: _Fault, key: str) -> str:
    """Return what to write instead of an option that does not exist."""
    prefix = ""
    for name in key.split("."):
        if name not in fault.options(prefix):
            break
        prefix += f"{name}."
    section = fault.key(prefix).rstrip(".")
    if name in CLASS_KEYS:
        if loose := _loose_argument(fault.index, section):
            return loose
        name = "class_path"
    given = fault.index.get(fault.key(prefix + name))
    where = "" if given is None else f"{given.where}: "
    dashes = "--" if where.startswith("-") else ""
    known = fault.options(prefix) - (set() if dashes else {"config"})
    if fault.is_nested and "." in section:
        bases = class_bases(_hint(fault.command, fault.path))
        if fault.parser.target in bases and not fault.index.all(f"{section}.class_path"):
            return f"{where}{section} needs a class_path, as in --{section} CLASS"
        section = fault.parser.target.__name__
    elsewhere = [a.dest for a in fault.command._actions if a.dest.rpartition(".")[2] == name]
    if foreign := _foreign_name(fault, name, known):
        inside = f"{section} has" if section else "there is"
        return f"{where}{inside} no option {dashes * (not section) + name!r}, which is {foreign}"
    if section in CLASS_SECTIONS and elsewhere:
        return f"{where}{section} has no option {name!r}; did you mean {elsewhere[0]!r}?"
    if section:
        return f"{where}{section} has no option {name!r}; {nearest(name, known)}"
    if name in COMMANDS:
        return f"{where}leave out the level '{name}:', what it holds goes to the top"
    if elsewhere:
        right = dashes + elsewhere[0]
        return f"{where}there is no option {dashes + name!r}; did you mean {right!r}?"
    right = nearest(dashes + name, [dashes + option for option in known])
    return f"{where}there is no option {dashes + name!r}; {right}"


def _foreign_name(fault: _Fault, name: str, known: set[str]) -> ForeignName | None:
    """Return what another tool's option is called here, if the command has that option.

    Args:
        fault: The error.
        name: The option that does not exist.
        known: The options that exist in its place; for a class, only these are named.
    """
    found = foreign_name(name)
    if found is None or not any(a.dest == "data.train" for a in fault.command._actions):
        return None  # a command without the options of a run
    if fault.is_nested and fault.path not in CLASS_SECTIONS:
        return found if found.option.removeprefix(f"{fault.path}.") in known else None
    return found


def _loose_argument(index: ConfigIndex, key: str) -> str | None:
    """Return how to write the first argument that stands next to a ``class_path``, if any does."""
    for given in index.all(key):
        if isinstance(given.value, dict) and "class_path" in given.value:
            for name in sorted(given.value.keys() - CLASS_KEYS):
                where = (index.get(f"{key}.{name}") or given).where
                path, value = given.value["class_path"], given.value[name]
                right = f"{{class_path: {path}, init_args: {{{name}: {value}}}}}"
                return f"{where}: {name!r} of {given.place} belongs under init_args: {right}"
    return None


def _required(fault: _Fault, key: str) -> str:
    """Return how to give an option that is missing."""
    if not fault.is_nested:
        for name in dict.fromkeys(k.split(".")[0] for k, _ in fault.index.entries):
            given = fault.index.get(name)
            if name and name not in {*fault.options(), "print_config"}:
                return _unknown(fault, name)  # which jsonargparse ignores if it is empty
            if given and name in CLASS_SECTIONS and not isinstance(given.value, dict | str):
                return f"{given.where}: {name} must be options, got {given.value!r}"
        key = key.partition(".")[2] if key.split(".")[0] in COMMANDS else key
    section, _, name = fault.key(key).rpartition(".")
    if not section:
        return f"--{name} is required"
    if "." not in section:
        return (
            f"{section}.{name} is required: give it in the config under '{section}:' "
            f"or as --{section}.{name}"
        )
    cls = fault.parser.target.__name__
    have = {v.place for v in fault.index.all(f"{section}.{name}")}
    for given in fault.index.all(section):
        is_class = cls in str(given.value)
        if is_class and "[" in given.place and f"{given.place}.{name}" not in have:
            section = given.place
            break
    return f"{section}: {cls} needs {name!r}: {{class_path: {cls}, init_args: {{{name}: ...}}}}"


def _hint(parser: RecordingParser, key: str) -> Any:
    """Return the type of an option; None if it has none, as a section."""
    return next((getattr(a, "_typehint", None) for a in parser._actions if a.dest == key), None)


def _wrong_value(fault: _Fault, key: str) -> str | None:
    """Return what an option accepts, where it was given something else."""
    hint, place, index = _hint(fault.parser, key), fault.key(key), fault.index
    values = index.all(place)
    if not values:
        deeper = [v for k, v in index.entries if k.startswith(f"{place}.")]
        return f"{deeper[0].where}: {place} must be {type_name(hint)}" if deeper else None
    if hint is None:
        return f"{values[-1].where}: {place} must be options, got {values[-1].value!r}"
    if bases := class_bases(hint):
        for name in index.all(place, f"{place}.class_path"):
            if is_yaml(name.value):
                return _wrong_file(fault, name, place)
            found = find_class(name.value, bases) if isinstance(name.value, str) else None
            if isinstance(found, str):
                return f"{_at(name, place)}: {found}"
        if loose := _loose_argument(index, place):
            return loose
    given = next((v for v in reversed(values) if str(v.value) in fault.message), values[-1])
    value = given.value
    is_hidden = is_secret(key, str(value)) and not isinstance(value, dict | list)
    got = "no value" if value is None else "***" if is_hidden else repr(without_secrets(value))
    if fixed := choices(hint):
        return f"{_at(given)} is {got}; {nearest(str(value), fixed)}"
    return f"{_at(given)} must be {type_name(hint)}, got {got}"


def _wrong_file(fault: _Fault, name: ConfigValue, place: str) -> str | None:
    """Return what is wrong in a YAML file that holds a class with its options."""
    ConfigIndex().add_file(name.folder / name.value)  # raises if it does not exist
    for parser, message in RecordingParser.recorded:  # the last one does not contain it
        if parser.target is not None:
            return _explain(_Fault(fault.command, parser, message, place, fault.index))
    return None


def _at(given: ConfigValue, place: str = "") -> str:
    """Return where a value was given; an option of the command line names its place already."""
    at_option = given.where.startswith("-")
    place = place or given.place
    return given.where.removesuffix("+") if at_option else f"{given.where}: {place}"


def type_name(hint: Any) -> str:
    """Return a type in words: ``int``, ``str or list[str]``, ``one of drop, error``."""
    if names := choices(hint):
        null = " or null" if types.NoneType in typing.get_args(hint) else ""
        return f"one of {', '.join(names)}{null}"
    if typing.get_origin(hint) in UNIONS:
        return " or ".join(type_name(a) for a in typing.get_args(hint))
    if hint is types.NoneType:
        return "null"
    if typing.get_origin(hint) is None and isinstance(hint, type):
        return hint.__name__
    return re.sub(r"\b(\w+\.)+", "", str(hint))


def choices(hint: Any) -> list[str]:
    """Return the values that ``hint`` allows, if it is a choice of fixed values."""
    if typing.get_origin(hint) is typing.Literal:
        return [str(value) for value in typing.get_args(hint)]
    if typing.get_origin(hint) in UNIONS:
        return list(dict.fromkeys(name for a in typing.get_args(hint) for name in choices(a)))
    return []
