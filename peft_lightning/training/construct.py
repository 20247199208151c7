"""The arguments of a constructor from plain values that were read from a file.

A file can name any class, so it chooses among those that are imported already, and that the type of
the argument allows. Nothing is imported for it, unless it is trusted.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import sysconfig
import types
import typing
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from peft_lightning.hyperparameters import IMPORT_PATH, NOT_SAVED, is_not_saved
from peft_lightning.messages import UserError

_DESCRIBED = {"class_path", "init_args"}
_NAMED = "class"  # of what the loggers have: {"class": "Cosine", "warmup": 0.03}


def arguments_from(
    kind: type, saved: Mapping[str, Any], given: Collection[str], trusted: bool = False
) -> dict[str, Any]:
    """Return the arguments of a constructor from their plain values.

    Args:
        kind: The class.
        saved: The values by argument; others than the constructor's are left out.
        given: Arguments that the caller has values for; they are left out.
        trusted: Whether classes may be imported.

    Raises:
        UserError: If a value is not saved, or names a class that is not imported or does not go
            with the type of the argument.
    """
    types_of = _types(kind)
    wanted = [n for n in saved if n in accepted(kind) and n not in given]
    return {n: _build(saved[n], types_of.get(n, Any), n, kind, trusted) for n in wanted}


def accepted(kind: type) -> set[str]:
    """Return the names of the arguments that a constructor takes, also through ``**kwargs``."""
    found: set[str] = set()
    for base in kind.__mro__:
        if "__init__" not in base.__dict__:
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]  # type: ignore[misc]
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        found |= {p.name for p in parameters if p.kind in named}
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return found


def _types(kind: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if "__init__" in base.__dict__:
            try:
                found |= typing.get_type_hints(base.__init__)  # type: ignore[misc]
            except (NameError, TypeError):  # a name that only type checkers import
                continue
    return found


def _build(value: Any, hint: Any, name: str, kind: type, trusted: bool) -> Any:
    """Return what a plain value stands for, where a value of type ``hint`` is wanted."""
    if is_not_saved(value):
        raise UserError(f"the value of {name} is not saved, it was {value[NOT_SAVED]}: give {name}")
    members = _members(hint)
    build = functools.partial(_build, name=name, kind=kind, trusted=trusted)
    if isinstance(value, dict):
        if value.keys() == {IMPORT_PATH}:
            return _of_own(value[IMPORT_PATH], name, kind, trusted)
        if value.keys() == _DESCRIBED or isinstance(value.get(_NAMED), str):
            return _instance(value, members, name, build, trusted)
        plain_classes = [m for m in members if is_dataclass(m) and isinstance(m, type)]
        if plain_classes and value.keys() <= (of := _types(plain_classes[0])).keys():
            return plain_classes[0](**{k: build(v, of[k]) for k, v in value.items()})
        inner = next((typing.get_args(m)[1:] for m in members if _is_a(m, Mapping)), ())
        return {k: build(v, inner[0] if inner else Any) for k, v in value.items()}
    if isinstance(value, list):
        return _collection(value, members, build)
    return _from_text(value, members, name, kind, trusted) if isinstance(value, str) else value


def _collection(value: list[Any], members: list[Any], build: Callable[..., Any]) -> Any:
    for member in members:
        origin = typing.get_origin(member) or member
        if origin in (list, tuple, set, frozenset):
            inner = [a for a in typing.get_args(member) if a is not Ellipsis] or [Any]
            of = inner if len(inner) == len(value) else inner[:1] * len(value)
            return origin(build(v, t) for v, t in zip(value, of, strict=True))
    inner = next((list(typing.get_args(m)) for m in members if typing.get_args(m)), [Any])
    return [build(v, inner[0]) for v in value]


def _from_text(value: str, members: list[Any], name: str, kind: type, trusted: bool) -> Any:
    for member in members:
        last = value.rpartition(".")[2]
        if isinstance(member, type) and issubclass(member, Enum) and last in member.__members__:
            return member[last]
    if str in members or Any in members:
        return value
    if any(isinstance(m, type) and issubclass(Path, m) and m is not object for m in members):
        return Path(value)
    if float in members:  # YAML reads 1e-4 as text
        with suppress(ValueError):
            return float(value)
    if torch.dtype in members:
        return getattr(torch, value.removeprefix("torch."))
    if torch.device in members:
        return torch.device(value)
    if any(_is_a(m, Callable) or _is_a(m, type) for m in members):
        return _of_own(value, name, kind, trusted)
    return value


def _of_own(path: str, name: str, kind: type, trusted: bool) -> Any:
    """Return what has a dotted path, if it is torch's or ours, or of the program's own files."""
    found = _imported(path, name, trusted)
    package = str(getattr(found, "__module__", "")).split(".")[0]
    is_known = package in {kind.__module__.split(".")[0], "torch", "peft_lightning"}
    if not (trusted or is_known or _is_own_file(found)):
        raise UserError(f"{name} is {path}, which is not of {kind.__module__}: give {name}")
    return found


def _is_own_file(found: Any) -> bool:
    """Whether something is of a file of the program, not of an installed package or of Python."""
    file = getattr(sys.modules.get(getattr(found, "__module__", "")), "__file__", None)
    installed = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib")]
    return file is not None and not any(Path(file).resolve().is_relative_to(p) for p in installed)


def _instance(
    value: dict[str, Any], members: list[Any], name: str, build: Callable[..., Any], trusted: bool
) -> Any:
    """Return an object of a class and its arguments, or what makes one where that is wanted."""
    made = [r for m in members if _is_a(m, Callable) for r in _members((typing.get_args(m))[-1])]
    objects = [m for m in members if isinstance(m, type) and m is not object]
    makers = [m for m in made if isinstance(m, type) and m is not object]
    arguments = value.get("init_args")
    if arguments is None:
        arguments = {k: v for k, v in value.items() if k != _NAMED}
        found = _by_name(value[_NAMED], [*objects, *makers], name)
    else:
        found = _imported(value["class_path"], name, trusted)
    of = _types(found) if isinstance(found, type) else {}
    ready = {k: build(v, of.get(k, Any)) for k, v in arguments.items()}
    if isinstance(found, type) and issubclass(found, tuple(makers)):
        return functools.partial(found, **ready)
    untyped = not objects and not makers and (trusted or is_dataclass(found))
    if isinstance(found, type) and (issubclass(found, tuple(objects)) or untyped):
        return found(**ready)
    raise UserError(f"{name} cannot be a {value.get('class_path', value.get(_NAMED))}: give {name}")


def _by_name(wanted: str, bases: list[type], name: str) -> type:
    """Return the subclass of one of ``bases`` that has a name; torch's if there are several."""
    found, left = [], list(bases)
    while left:
        current = left.pop()
        left += type.__subclasses__(current)
        found += [current] if current.__name__ == wanted and current not in found else []
    if not found:
        raise UserError(f"{name} is a {wanted}, and no such class is imported: give {name}")
    return min(found, key=lambda c: (not c.__module__.startswith("torch."), c.__module__))


def _imported(path: str, name: str, trusted: bool) -> Any:
    """Return what has a dotted path, if its module is imported already."""
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:cut])
        if trusted and module not in sys.modules:
            try:
                importlib.import_module(module)
            except ModuleNotFoundError:
                continue
        if module in sys.modules:
            try:
                return functools.reduce(getattr, parts[cut:], sys.modules[module])
            except AttributeError:
                break
    raise UserError(
        f"{name} is {path}, which is not imported: import {path.rpartition('.')[0]} first, or give "
        f"{name} itself"
    )


def _members(hint: Any) -> list[Any]:
    """Return the types that a value may have: those of a union, else the one."""
    if isinstance(hint, typing.TypeVar):
        return [hint.__bound__ or Any]
    if typing.get_origin(hint) is typing.Annotated:
        return _members(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [m for part in typing.get_args(hint) for m in _members(part)]
    return [hint]


def _is_a(member: Any, what: Any) -> bool:
    """Whether a type is that of a mapping, a callable or a class, with or without its arguments."""
    origin = typing.get_origin(member) or member
    if what is type:
        return origin is type
    wanted = (Callable, typing.Callable) if what is Callable else (dict, Mapping)
    return origin in wanted
