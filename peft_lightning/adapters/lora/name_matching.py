"""Module names matched as HF PEFT matches them: by suffix, regular expression or pattern."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

from peft_lightning.adapters.lora.expressions import fullmatch, within_time
from peft_lightning.messages import UserError, did_you_mean

Value = TypeVar("Value")


def match_pattern(patterns: Mapping[str, Value], name: str) -> Value | None:
    """Return the value of the first key that matches ``name``, as for ``rank_pattern``.

    A key is a regular expression for the whole name or for the end of it after a dot; a leading
    ``^`` makes it the whole name.
    """
    for key, value in patterns.items():
        if within_time(rf"(.*\.)?({key})$", name):
            return value
    return None


def check_patterns_match(option: str, patterns: Mapping[str, Any], names: Collection[str]) -> None:
    """Raise UserError if a key of ``patterns`` matches none of ``names``; suggest the nearest."""
    for key in patterns:
        if not any(match_pattern({key: True}, name) for name in names):
            leaves = {name.rpartition(".")[2] for name in names}
            raise UserError(
                f"{option} key {key!r} matches no targeted layer" + did_you_mean(key, leaves)
            )


def shortest_suffixes(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Return few suffixes that match all ``names`` and none of ``others``, as HF PEFT does."""
    names = list(names)
    taken = {suffix for name in others for suffix in _suffixes(name)}
    chosen: list[str] = []
    for name in sorted(names, key=_suffixes):
        if not ends_with(name, chosen):
            chosen += [suffix for suffix in _suffixes(name) if suffix not in taken][:1]
    return chosen if all(ends_with(name, chosen) for name in names) else names


def _suffixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[i:]) for i in reversed(range(len(parts)))]  # the shortest first


def ends_with(name: str, endings: list[str]) -> bool:
    """Whether ``name`` is one of ``endings`` or ends with a dot and one of them."""
    return name in endings or name.endswith(tuple(f".{ending}" for ending in endings))


def matches(wanted: list[str] | str, name: str) -> bool:
    """Whether ``name`` ends with one of a list, or a regular expression matches the whole of it."""
    if isinstance(wanted, str):
        return fullmatch(wanted, name)
    return ends_with(name, wanted)
