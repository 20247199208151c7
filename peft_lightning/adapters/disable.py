"""The base alone for a while: an adapter is taken out of a model and put back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any

from torch import nn

from peft_lightning.adapters.base import attached_adapter

_MISSING = object()

Entries = dict[Any, Any]
Changes = list[tuple[Entries, Entries, set[Any]]]


@contextmanager
def disable_adapter(model: nn.Module) -> Iterator[None]:
    """Let ``model`` compute what its base computes, bit for bit, within a ``with`` block.

    After it the adapter is there again, the same modules and parameters in the same order: their
    values, gradients and the optimizer's state are untouched. A gradient that was computed before
    the block may be propagated after it, not in it. A model without an adapter stays as it is.

    Args:
        model: A model with an adapter.

    Raises:
        UserError: If there is no base to go back to, as with full fine-tuning.
    """
    adapter = attached_adapter(model)
    if adapter is None:
        yield
        return
    before = [(entries, dict(entries)) for entries in _attributes(model)]
    try:
        adapter.disable(model)
    except BaseException:
        _undo(_changes(before))
        raise
    changes = _changes(before)
    try:
        yield
    finally:
        _undo(changes)


def _attributes(model: nn.Module) -> Iterator[Entries]:
    """Yield all that taking out an adapter changes: attributes, parts, parameters and hooks."""
    for module in model.modules():
        yield vars(module)
        yield from (value for value in vars(module).values() if isinstance(value, dict))
    if (config := getattr(model, "config", None)) is not None:
        yield vars(config.get_text_config())  # whose vocabulary new tokens enlarge


def _changes(before: list[tuple[Entries, Entries]]) -> Changes:
    """Return the dictionaries that have changed, what was in them, and which keys differ."""
    found = []
    for now, old in before:
        if len(now) != len(old) or not all(map(is_, now.values(), old.values())):
            keys = {k for k in {*old, *now} if old.get(k, _MISSING) is not now.get(k, _MISSING)}
            found.append((now, old, keys))
    return found


def _undo(changes: Changes) -> None:
    """Give each changed entry its old value, in the old order; others may have changed since."""
    for entries, old, changed in changes:
        now = dict(entries)
        entries.clear()
        entries.update({k: old[k] if k in changed else now.get(k, old[k]) for k in old})
        entries.update({k: v for k, v in now.items() if k not in old and k not in changed})
