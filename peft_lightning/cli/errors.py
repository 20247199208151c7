"""Errors of the command line in one line: what was given, what is wrong, the nearest right name.

``explain`` runs after the parser has refused its input. It compares what was given with the
signatures of the classes it is meant for, so it depends on no wording of the parser's messages.
"""

from __future__ import annotations

import dis
from pathlib import Path
from types import TracebackType
from typing import Any

import jsonargparse

from peft_lightning.cli.given import Given, read_config
from peft_lightning.cli.signatures import (
    Option,
    accepts,
    choices,
    class_bases,
    find_class,
    is_callable,
    nearest,
    options_of,
    type_name,
)
from peft_lightning.messages import is_secret, redacted

PACKAGE = str(Path(__file__).parents[1])
PARSER = str(Path(jsonargparse.__file__).parent)
TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
CLASS_KEYS = {"class_path", "init_args", "dict_kwargs"}


def one_line(error: BaseException | str) -> str:
    """Return the message in one line, with the notes that were added to it, without secrets."""
    if isinstance(error, KeyError) and error.args:
        error = str(error.args[0])
    notes = getattr(error, "__notes__", [])
    if notes:  # torch's own advice is long, and for who writes programs
        error = ". ".join([str(error).partition(". ")[0] or type(error).__name__, *notes])
    return redacted(" ".join(str(error).split()))


def innermost(error: BaseException) -> BaseException:
    """Return the error that a parser's error is about: what the user's class itself raised."""
    found = waiting = error
    while (cause := waiting.__cause__ or waiting.__context__) is not None:
        waiting, last = cause, _last(cause.__traceback__)
        if last is not None and not last.tb_frame.f_code.co_filename.startswith(PARSER):
            found = waiting
    return found


def _last(traceback: TracebackType | None) -> TracebackType | None:
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback


def exit_status(error: BaseException) -> int | None:
    """Return the exit status for an error that was foreseen, None for one that was not.

    Foreseen is what a ``raise`` statement of this package raised, what the system refused (a
    file, the network, disk space, memory), and what Lightning calls a misconfiguration: 1 if the
    training itself failed, 2 if the user's input is wrong.
    """
    names = {c.__name__ for c in type(error).__mro__}
    if "MisconfigurationException" in names or isinstance(error, OSError):
        return 2
    if isinstance(error, (MemoryError, RuntimeError)):
        from peft_lightning.training.out_of_memory import is_out_of_memory

        if is_out_of_memory(error):
            return 1
    if not _raised_here(error.__traceback__) or isinstance(error, NotImplementedError):
        return None
    return 1 if isinstance(error, RuntimeError) else 2


def _raised_here(traceback: TracebackType | None) -> bool:
    """Whether the error comes from a ``raise`` statement in this package."""
    last = _last(traceback)
    if last is None:
        return False
    code = last.tb_frame.f_code
    raises = code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return raises and code.co_filename.startswith(PACKAGE)


def explain(given: list[Given], root: dict[str, Option]) -> str | None:
    """Return what is wrong with ``given``, or None if nothing is found.

    Args:
        given: Config files and options, in order; later ones add to earlier ones.
        root: The sections and options at the top level.
    """
    return _Walk(root).find(given)


class _Walk:
    """Goes through what was given and remembers the class at each place, and its arguments."""

    def __init__(self, root: dict[str, Option]) -> None:
        self.root = root
        self.classes: dict[str, type | None] = {}
        self.arguments: dict[str, set[str]] = {}

    def find(self, given: list[Given]) -> str | None:
        for source in given:
            for name, member in source.value.items():
                if name == "print_config":
                    continue
                if fault := self._option(self.root, name, member, ""):
                    return fault
        for name, option in self.root.items():
            if option.section is not None:
                self.classes.setdefault(name, option.section)
            elif option.required and not any(name in source.value for source in given):
                return f"--{name} is required"
        for path, cls in self.classes.items():
            if cls is None:
                continue
            for name, option in options_of(cls).items():
                if option.required and name not in self.arguments.get(path, ()):
                    return _missing(path, cls, name, path in self.root)
        return None

    def _option(self, known: dict[str, Option], name: str, given: Given, path: str) -> str | None:
        name = name.removesuffix("+")
        place = f"{path}.{name}" if path else name
        if name == "help" and path:
            return None
        if name not in known:
            return None if "**" in known else self._unknown(known, name, given, path)
        option = known[name]
        if option.section is not None:
            self.classes.setdefault(place, option.section)
            return self._instance(given, (option.section,), place, option.section)
        bases = class_bases(option.hint)
        if bases and self._names_a_class(given, option.hint):
            return self._instance(given, bases, place, option.hint)
        value = given.plain()
        is_item = given.where.endswith("+")  # one more of a list
        if bases or any(
            accepts(option.hint, v, given.where) for v in (value, [value])[: 1 + is_item]
        ):
            return None
        got = "no value" if value is None else "***" if is_secret(name, str(value)) else repr(value)
        if fixed := choices(option.hint):
            return f"{_at(given, place)} is {got}; {nearest(str(value), fixed)}"
        return f"{_at(given, place)} must be {type_name(option.hint)}, got {got}"

    def _unknown(self, known: dict[str, Option], name: str, given: Given, path: str) -> str:
        if path:
            cls = self.classes[path]
            owner = path if path in self.root or cls is None else cls.__name__
            return f"{given.where}: {owner} has no option {name!r}; {nearest(name, known)}"
        dashes = "--" if given.where.startswith("-") else ""
        if name in TRAINER_COMMANDS:
            return f"{given.where}: leave out the level '{name}:', what it holds goes to the top"
        inside = {
            option: f"{section}.{option}"
            for section, its in known.items()
            if its.section is not None
            for option in options_of(its.section)
        }
        if name in inside:
            right = f"did you mean {dashes + inside[name]!r}?"
        else:
            right = nearest(dashes + name, [dashes + option for option in known])
        return f"{given.where}: there is no option {dashes + name!r}; {right}"

    @staticmethod
    def _names_a_class(given: Given, hint: Any) -> bool:
        if isinstance(given.value, list):
            return all(isinstance(item.value, str | dict) for item in given.value)
        if isinstance(given.value, str):
            others = [h for h in getattr(hint, "__args__", ()) if not class_bases(h)]
            return not any(accepts(h, given.value, given.where) for h in others)
        return isinstance(given.value, dict)

    def _instance(self, given: Given, bases: tuple[type, ...], path: str, hint: Any) -> str | None:
        value = given.value
        if isinstance(value, list):
            faults = (
                self._instance(item, bases, f"{path}[{i}]", hint) for i, item in enumerate(value)
            )
            return next((fault for fault in faults if fault), None)
        if isinstance(value, str) and value.endswith((".yaml", ".yml")):
            return self._instance(read_config(given.folder / value), bases, path, hint)
        if isinstance(value, str):
            return self._class(given, bases, path, hint)
        if not isinstance(value, dict):
            return f"{given.where}: {path} must be options, got {value!r}"
        if "class_path" in value:
            if fault := self._class(value["class_path"], bases, path, hint):
                return fault
            if loose := sorted(value.keys() - CLASS_KEYS):
                name = loose[0]
                return (
                    f"{value[name].where}: {name!r} of {path} belongs under init_args: "
                    f"{{class_path: {value['class_path'].value}, "
                    f"init_args: {{{name}: {value[name].plain()}}}}}"
                )
        self.classes.setdefault(path, self._default(path))
        cls = self.classes[path]
        members = value["init_args"].value if "init_args" in value else value
        if not isinstance(members, dict):
            return f"{value['init_args'].where}: init_args of {path} must be options"
        if cls is None:
            return None if not members else f"{given.where}: {path} needs a class_path"
        known = options_of(cls, skip_first=is_callable(hint))
        for name, member in members.items():
            if name in CLASS_KEYS:
                continue
            self.arguments.setdefault(path, set()).add(name.removesuffix("+"))
            if fault := self._option(known, name, member, path):
                return fault
        return None

    def _class(self, given: Given, bases: tuple[type, ...], path: str, hint: Any) -> str | None:
        found = find_class(str(given.value), bases)
        if isinstance(found, str):
            return f"{_at(given, path)}: {found}"
        self.classes[path] = found
        arguments = self.arguments.setdefault(path, set())
        if is_callable(hint):  # whose first argument is not the user's
            arguments.update(list(options_of(found))[:1])
        return None

    def _default(self, path: str) -> type | None:
        """Return the class of the default value at ``path``, such as the module's LoRA()."""
        owner, _, name = path.rpartition(".")
        cls = self.classes.get(owner)
        default = options_of(cls)[name].default if cls and name in options_of(cls) else None
        return None if default is None else type(default)


def _at(given: Given, place: str) -> str:
    """Return where a value stands; the option's own name says its place."""
    at_option = given.where.startswith("-")
    return given.where.removesuffix("+") if at_option else f"{given.where}: {place}"


def _missing(path: str, cls: type, name: str, section: bool) -> str:
    if section:
        return (
            f"{path}.{name} is required: give it in the config under '{path}:' "
            f"or as --{path}.{name}"
        )
    example = f"{{class_path: {cls.__name__}, init_args: {{{name}: ...}}}}"
    return f"{path}: {cls.__name__} needs {name!r}: {example}"
