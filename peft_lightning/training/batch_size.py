"""Rows and tokens of a batch, whatever its form: one dict, or a nest of dicts and sequences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def count_tokens(batch: Any) -> int:
    """Return the number of tokens that are no padding; 0 if no part has ``input_ids``."""
    return sum(_tokens(part) for part in token_batches(batch))


def count_rows(batch: Any) -> int:
    """Return the number of sequences; 0 if no part has ``input_ids``."""
    return sum(_rows(part) for part in token_batches(batch))


def token_batches(batch: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the parts of a batch that have ``input_ids``, (B, T)."""
    if isinstance(batch, Mapping):
        if isinstance(batch.get("input_ids"), Tensor):
            yield batch
        else:
            for part in batch.values():
                yield from token_batches(part)
    elif isinstance(batch, list | tuple):
        for part in batch:
            yield from token_batches(part)


def _tokens(part: Mapping[str, Any]) -> int:
    mask = part.get("attention_mask")
    return int(mask.sum()) if isinstance(mask, Tensor) else part["input_ids"].numel()


def _rows(part: Mapping[str, Any]) -> int:
    rows, positions = len(part["input_ids"]), part.get("position_ids")
    if rows == 1 and positions is not None:  # sequences laid end to end, each from position 0
        return int((positions.cpu() == 0).sum())
    return rows
