"""A format given as a function object: its name among the formats, and what its rows depend on."""

import dis
import functools
import hashlib
import importlib
import inspect
import pickle
import types
from collections.abc import Callable
from typing import Any

from peft_lightning.messages import UserError

_GIVEN: dict[str, Callable[..., Any]] = {}  # the functions that no import finds, by name
_OWN_SOURCE = "<"  # begins the file of what was typed: <stdin>, <ipython-input-1>


def format_name(format: Any) -> str:
    """Return the name of a format: the dotted path of a function that is given as an object.

    A function of a module has the name it has in a config. A nested one, a lambda, a partial, an
    object or a function that was typed has a name with a hash of its code, and of the values that
    it uses.

    Args:
        format: The name of a format, or a function from a record.

    Raises:
        UserError: If it is neither, or depends on a value whose content cannot be told.
    """
    if isinstance(format, str):
        return format
    if not callable(format):
        raise UserError(f"data.format must be a name or a function from a row, got {format!r:.80}")
    module = getattr(format, "__module__", None) or "__main__"
    name = getattr(format, "__qualname__", type(format).__qualname__)
    if _is_importable(format, module, name):
        return f"{module}.{name}"
    key = hashlib.sha256("\n".join(_key(format, name, set())).encode()).hexdigest()
    name = f"{module}.{name}#{key[:16]}"
    _GIVEN[name] = format
    return name


def given_function(name: str) -> Callable[..., Any] | None:
    """Return the function that ``format_name`` gave this name, None for a dotted path."""
    return _GIVEN.get(name)


def _is_importable(function: Any, module: str, name: str) -> bool:
    """Whether an import finds the function, and its source is a file."""
    if not isinstance(function, types.FunctionType) or "." in name:
        return False
    try:
        found = importlib.import_module(module)
        file = inspect.getsourcefile(function)
    except (ImportError, TypeError):
        return False
    return getattr(found, name, None) is function and not (file or "<").startswith(_OWN_SOURCE)


def _key(value: Any, place: str, seen: set[int]) -> list[str]:
    """Return what tells a function or a value that it uses from others, line by line."""
    if id(value) in seen:
        return []
    seen.add(id(value))
    if isinstance(value, types.ModuleType):
        return [value.__name__, str(getattr(value, "__version__", ""))]
    if isinstance(value, functools.partial):
        parts = (value.func, *value.args, *sorted(value.keywords.items()))
        return [line for part in parts for line in _key(part, place, seen)]
    if isinstance(value, types.MethodType):
        return [*_key(value.__func__, place, seen), *_key(value.__self__, place, seen)]
    if isinstance(value, types.FunctionType):
        return _key_of_function(value, place, seen)
    if isinstance(value, type | types.BuiltinFunctionType):
        return [f"{value.__module__}.{value.__qualname__}", *_methods(value, place, seen)]
    if isinstance(value, dict | list | tuple) and not _is_plain(value):
        items = value.items() if isinstance(value, dict) else value
        return [line for item in items for line in _key(item, place, seen)]
    try:
        content = pickle.dumps(value).hex()
    except Exception as error:  # whatever a class of the user's raises
        raise UserError(
            f"data.format {place} uses a {type(value).__name__}, whose content cannot be told from "
            "another's: make it a function of a module, and give that or its dotted path"
        ) from error
    return [content, *_methods(type(value), place, seen)]


def _key_of_function(function: types.FunctionType, place: str, seen: set[int]) -> list[str]:
    lines = _of_code(function.__code__)
    used = inspect.getclosurevars(function)
    values = {**used.globals, **used.nonlocals}
    for name, value in sorted(values.items()):
        lines += [name, *_key(value, place, seen)]
    defaults = (function.__defaults__, function.__kwdefaults__)
    return lines + _key(defaults, place, seen)


def _of_code(code: types.CodeType) -> list[str]:
    """Return the instructions of a function without line numbers, those of inner ones too."""
    lines = [
        f"{i.opname} {'' if _is_code(i.argval) else i.argrepr}" for i in dis.get_instructions(code)
    ]
    for constant in code.co_consts:
        if _is_code(constant):
            lines += _of_code(constant)
    return lines


def _methods(kind: Any, place: str, seen: set[int]) -> list[str]:
    """Return the code of the methods of a class that was typed, or is in a module of the user's."""
    if not isinstance(kind, type) or kind.__module__ == "builtins":
        return []
    found = []
    for name, value in sorted(vars(kind).items()):
        if isinstance(value, types.FunctionType):
            found += [name, *_key(value, place, seen)]
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.items()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float | bool | bytes | None)


def _is_code(value: Any) -> bool:
    return isinstance(value, types.CodeType)
