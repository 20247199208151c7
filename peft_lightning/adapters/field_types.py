"""Type checks of a config's values against the fields of a dataclass."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from peft_lightning.messages import UserError


def check_field_types(cls: type, values: Mapping[str, Any]) -> None:
    """Raise UserError if a value has another type than the field of ``cls`` with its name.

    A float may be given as an integer. None passes: an option that may not be None rejects it
    itself.
    """
    hints = get_type_hints(cls)
    for name, value in values.items():
        if value is not None and not _fits(value, hints[name]):
            raise UserError(f"{name} must be {_text(hints[name])}, got {value!r:.80}")


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (types.UnionType, Union):
        return any(_fits(value, one) for one in inner)
    if origin is list:
        return isinstance(value, list | tuple | set) and all(_fits(v, inner[0]) for v in value)
    if origin is dict:
        return isinstance(value, Mapping) and all(
            _fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items()
        )
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint


def _text(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
