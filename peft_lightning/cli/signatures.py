"""What classes accept: their options with types, found by signature; classes found by name."""

from __future__ import annotations

import collections.abc
import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from peft_lightning.messages import near_names

PLAIN_MODULES = ("builtins", "datetime", "pathlib", "inspect", "types", "torch")
UNIONS = (typing.Union, types.UnionType)


@dataclass(frozen=True)
class Option:
    """One option: its type, whether it must be given, its default.

    Args:
        hint: The annotation.
        required: Whether it has no default.
        default: The default value; None where there is none.
        section: The class whose options are nested under this one, for ``model``, ``trainer``.
    """

    hint: Any = Any
    required: bool = False
    default: Any = None
    section: type | None = None


def options_of(function: Callable[..., Any], skip_first: bool = False) -> dict[str, Option]:
    """Return the options of a function or class, through ``**kwargs`` up to its base classes.

    Args:
        function: A class stands for its constructor.
        skip_first: Leave out the first one, which is not the user's (an optimizer's ``params``).

    Returns:
        The options by name; ``"**"`` among them if any further name is accepted.
    """
    found = dict(_options_of(function))
    if skip_first and found:
        del found[next(iter(found))]
    return found


@cache
def _options_of(function: Callable[..., Any]) -> dict[str, Option]:
    found: dict[str, Option] = {}
    classes = function.__mro__ if isinstance(function, type) else (function,)
    for cls in classes:
        method = cls.__dict__.get("__init__") if isinstance(cls, type) else cls
        if method is None:
            continue
        try:
            hints = typing.get_type_hints(method)
        except (NameError, TypeError):  # names that exist for type checkers only
            hints = {}
        parameters = list(inspect.signature(method).parameters.values())
        if isinstance(cls, type):
            parameters = parameters[1:]
        for p in parameters:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in found:
                required = p.default is p.empty
                found[p.name] = Option(
                    hints.get(p.name, Any), required, None if required else p.default
                )
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return found
    return {**found, "**": Option()}


def accepts(hint: Any, value: Any, where: str = "") -> bool:
    """Whether ``value`` is of the type ``hint``; a text from the command line is converted."""
    if hint is Any or hint is inspect.Parameter.empty:
        return True
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    try:
        parser.add_argument("--v", type=hint)
        if where.startswith("-"):
            parser.parse_args([f"--v={value}"] if value is not None else ["--v"])
        else:
            parser.parse_object({"v": value})
    except (ArgumentError, TypeError):
        return False
    except ValueError:  # a type that cannot be an option
        return True
    return True


def class_bases(hint: Any) -> tuple[type, ...]:
    """Return the classes an option of type ``hint`` can be an instance of, plain types left out."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is None:
        plain = not isinstance(hint, type) or hint.__module__ in PLAIN_MODULES
        return () if plain else (hint,)
    if origin in (dict, collections.abc.Mapping, typing.Literal):
        return ()
    if origin is collections.abc.Callable:
        arguments = arguments[-1:]
    return tuple(dict.fromkeys(base for a in arguments for base in class_bases(a)))


def is_callable(hint: Any) -> bool:
    """Whether ``hint`` is, or has as a choice, a callable that returns what is configured."""
    if typing.get_origin(hint) is collections.abc.Callable:
        return True
    return typing.get_origin(hint) in UNIONS and any(map(is_callable, typing.get_args(hint)))


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


def find_class(name: str, bases: tuple[type, ...]) -> type | str:
    """Return the subclass of ``bases`` called ``name``, or why there is none.

    Args:
        name: Short for an imported class (``LoRA``), else with its module (``my_exp.MyLoRA``).
        bases: What it must be a subclass of.
    """
    known = {c.__name__: c for c in _subclasses(bases)}
    kind = " or ".join(dict.fromkeys(base.__name__ for base in bases))
    if name in known:
        return known[name]
    if "." not in name:
        return f"there is no {kind} {name!r}; {nearest(name, known)}"
    module_name, _, attribute = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        short = f"; did you mean {attribute!r}?" if attribute in known else ""
        return (
            f"cannot import {name!r}: there is no module {error.name!r} in the current folder "
            f"or among the installed packages{short}"
        )
    except Exception as error:
        return f"cannot import {name!r}: {type(error).__name__}: {error}"
    if not hasattr(module, attribute):
        inside = {n: c for n, c in vars(module).items() if n in known or _fits(c, bases)}
        return f"{module_name} has no {kind} {attribute!r}; {nearest(attribute, inside or known)}"
    found = getattr(module, attribute)
    if not _fits(found, bases):
        return f"{name} is no {kind}; {nearest(attribute, known)}"
    return found


def _subclasses(bases: tuple[type, ...]) -> list[type]:
    found, waiting = [], list(bases)
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if not inspect.isabstract(cls) and not cls.__name__.startswith("_"):
            found.append(cls)
    return found


def _fits(value: Any, bases: tuple[type, ...]) -> bool:
    return isinstance(value, type) and issubclass(value, bases)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the nearest right name, and all of them if they are few or none is near."""
    names = sorted(known)
    near = near_names(name, names)
    if near and len(names) > 8:
        return f"did you mean {near[0]!r}?"
    listed = ", ".join(names[:24]) + (", ..." if len(names) > 24 else "")
    hint = f"did you mean {near[0]!r}? T" if near else "t"
    return f"{hint}here {'is' if len(names) < 2 else 'are'}: {listed or 'none'}"
