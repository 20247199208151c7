"""The ways to run a model, from the fastest to the safest, and a batch as each of them takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Batch = dict[str, Any]

_OF_FLAT = ("position_ids", "cu_seq_lens", "seq_lens")  # what only a flat batch has


@dataclass(frozen=True)
class Way:
    """A way to run a model.

    Args:
        layout: Of what it is given: flat, padded, or rows, one at a time.
        attention: Whether it is the model's own.
        layers: Whether they run their own code, where we have a faster function.
    """

    layout: str
    attention: bool = False
    layers: bool = False

    def __str__(self) -> str:
        rows = {"flat": "rows end to end", "padded": "padded rows", "rows": "one row at a time"}
        own = ", its own attention" if self.attention else ""
        return rows[self.layout] + own + (" and layers" if self.layers else "")


WAYS = (
    Way("flat"),
    Way("padded"),
    Way("padded", attention=True),
    Way("padded", attention=True, layers=True),
    Way("rows", attention=True, layers=True),
)


def arranged(batch: Batch, layout: str) -> list[Batch]:
    """Return the parts of a batch, flat or padded, that a model is given in turn.

    Args:
        batch: With ``seq_lens`` if it is flat. What has another shape than its tokens is passed on.
        layout: Of a way. The labelled tokens stay in their order.
    """
    if layout == "padded" and "seq_lens" in batch:
        return [_padded(batch)]
    if layout == "rows":
        batch = _padded(batch) if "seq_lens" in batch else batch
        return [_row(batch, i) for i in range(len(batch["input_ids"]))]
    return [batch]


def _padded(batch: Batch) -> Batch:
    """Return a flat batch with a row for each sequence, padded on the right."""
    shape, lens = batch["input_ids"].shape, list(batch["seq_lens"])
    padded = {name: value for name, value in batch.items() if name not in _OF_FLAT}
    padded["attention_mask"] = torch.ones_like(batch["input_ids"])
    for name, value in padded.items():
        if isinstance(value, Tensor) and value.shape == shape:
            padded[name] = torch.nn.utils.rnn.pad_sequence(
                list(value[0].split(lens)),
                batch_first=True,
                padding_value=-100 if name == "labels" else 0,
            )
    return padded


def _row(batch: Batch, i: int) -> Batch:
    """Return a row of a padded batch, without its padding."""
    shape = batch["input_ids"].shape
    mask = batch.get("attention_mask", torch.ones(shape))[i].bool()
    return {
        name: value[i, mask][None] if isinstance(value, Tensor) and value.shape == shape else value
        for name, value in batch.items()
    }
