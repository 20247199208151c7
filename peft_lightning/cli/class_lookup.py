"""Classes that an option can name, found by name, and the options of a class."""

from __future__ import annotations

import argparse
import collections.abc
import importlib
import inspect
import typing
from collections.abc import Callable, Iterable
from typing import Any

from jsonargparse import ArgumentParser

from peft_lightning.messages import near_names

PLAIN_MODULES = ("builtins", "datetime", "pathlib", "inspect", "types", "torch")


def options_of(function: Callable[..., Any]) -> dict[str, argparse.Action]:
    """Return the options that jsonargparse finds for a function or class, by name."""
    parser = ArgumentParser(add_help=False)
    if isinstance(function, type):
        names = parser.add_class_arguments(function, fail_untyped=False)
    else:
        names = parser.add_function_arguments(function, fail_untyped=False)
    actions = {action.dest: action for action in parser._actions}
    return {name: actions[name] for name in names}


def class_bases(hint: Any) -> tuple[type, ...]:
    """Return the classes an option of type ``hint`` can be an instance of, without plain types."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is None:
        plain = not isinstance(hint, type) or hint.__module__ in PLAIN_MODULES
        return () if plain else (hint,)
    if origin in (dict, collections.abc.Mapping, typing.Literal):
        return ()
    if origin is collections.abc.Callable:
        arguments = arguments[-1:]
    return tuple(dict.fromkeys(base for a in arguments for base in class_bases(a)))


def find_class(name: str, bases: tuple[type, ...]) -> type | str:
    """Return the subclass of ``bases`` called ``name``, or an error message.

    Args:
        name: The name of an imported class (``LoRA``), or a dotted path (``my_exp.MyLoRA``).
        bases: Classes, one of which it must be derived from.
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
        inside = {n: c for n, c in vars(module).items() if n in known or _is_derived(c, bases)}
        return f"{module_name} has no {kind} {attribute!r}; {nearest(attribute, inside or known)}"
    found = getattr(module, attribute)
    if not _is_derived(found, bases):
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


def _is_derived(value: Any, bases: tuple[type, ...]) -> bool:
    return isinstance(value, type) and issubclass(value, bases)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the nearest known name, and all of them if they are few or none is near."""
    names = sorted(known)
    near = near_names(name, names)
    if near and len(names) > 8:
        return f"did you mean {near[0]!r}?"
    listed = ", ".join(names[:24]) + (", ..." if len(names) > 24 else "")
    hint = f"did you mean {near[0]!r}? T" if near else "t"
    return f"{hint}here {'is' if len(names) < 2 else 'are'}: {listed or 'none'}"
