"""From rows to the tensors of a batch: flat or padded for training, left-padded for generation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Batch = dict[str, Any]

# replaces the rows of an empty batch: a token without loss, so that every rank takes the step
EMPTY_ROW = {
    "input_ids": np.zeros(1, dtype=np.int64),
    "labels": np.full(1, -100),
}


def _has_fractions(rows: Sequence[Batch]) -> bool:
    """Whether any token has a weight in the loss other than 0 and 1."""
    weights = (row["loss_weights"] for row in rows if "loss_weights" in row)
    return any((w != (w != 0)).any() for w in weights)


def _weights(row: Batch) -> NDArray[np.float32]:
    """Return the weights of a row's tokens in the loss, (n,): 1 at labels unless it has others."""
    weights: NDArray[np.float32] | None = row.get("loss_weights")
    return (row["labels"] != -100).astype(np.float32) if weights is None else weights


def flat_collate(rows: Sequence[Batch]) -> Batch:
    """Concatenate rows into one sequence without padding.

    Args:
        rows: Each with ``input_ids`` and ``labels``, (n,) int64 arrays, and ``loss_weights``, (n,)
            float32, if they are not 1 at each label.

    Returns:
        ``input_ids``, ``labels``, ``position_ids``: (1, T) int64; positions restart at each row.
        ``cu_seq_lens``: (S + 1,) int32, the offsets of the S rows and the end of the last.
        ``seq_lens``: The lengths of the rows, Python ints.
        ``loss_weights``: (1, T) float32, only if a weight is neither 0 nor 1.
    """
    rows = rows or [EMPTY_ROW]
    lengths = [len(row["input_ids"]) for row in rows]
    batch = {
        "input_ids": torch.from_numpy(np.concatenate([row["input_ids"] for row in rows]))[None],
        "labels": torch.from_numpy(np.concatenate([row["labels"] for row in rows]))[None],
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
        "cu_seq_lens": torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        "seq_lens": lengths,
    }
    if _has_fractions(rows):
        batch["loss_weights"] = torch.from_numpy(np.concatenate([_weights(r) for r in rows]))[None]
    return batch


def padded_collate(rows: Sequence[Batch], pad_id: int) -> Batch:
    """Pad rows on the right to the length of the longest.

    Args:
        rows: Each with ``input_ids`` and ``labels``, (n,) int64 arrays, and ``loss_weights``, (n,)
            float32, if they are not 1 at each label.
        pad_id: Token id of the padding; the attention mask hides it, and its label is -100.

    Returns:
        ``input_ids``, ``labels``, ``attention_mask``: (B, T) int64; the mask is 1 at tokens.
        ``loss_weights``: (B, T) float32, only if a weight is neither 0 nor 1.
    """
    rows = rows or [EMPTY_ROW]
    shape = len(rows), max(len(row["input_ids"]) for row in rows)
    batch = {
        "input_ids": torch.full(shape, pad_id),
        "labels": torch.full(shape, -100),
        "attention_mask": torch.zeros(shape, dtype=torch.int64),
    }
    if _has_fractions(rows):
        batch["loss_weights"] = torch.zeros(shape)
    for i, row in enumerate(rows):
        n = len(row["input_ids"])
        if "loss_weights" in batch:
            batch["loss_weights"][i, :n] = torch.from_numpy(_weights(row).copy())
        batch["input_ids"][i, :n] = torch.from_numpy(row["input_ids"])
        batch["labels"][i, :n] = torch.from_numpy(row["labels"])
        batch["attention_mask"][i, :n] = 1
    return batch


def prompt_collate(rows: Sequence[tuple[int, list[int], str | None]], pad_id: int) -> Batch:
    """Pad prompts on the left, for generation with one adapter.

    Args:
        rows: The record index, token ids and adapter name of each prompt; the same adapter for all.
        pad_id: Token id of the padding; the attention mask hides it.

    Returns:
        ``input_ids``, ``attention_mask``: (B, T) int64. ``index``: The record indices.
        ``adapter``: The adapter's name.
    """
    shape = len(rows), max(len(ids) for _, ids, _ in rows)
    batch: Batch = {
        "input_ids": torch.full(shape, pad_id),
        "attention_mask": torch.zeros(shape, dtype=torch.int64),
        "index": [index for index, _, _ in rows],
        "adapter": rows[0][2],
    }
    for i, (_, ids, _) in enumerate(rows):
        batch["input_ids"][i, shape[1] - len(ids) :] = torch.tensor(ids)
        batch["attention_mask"][i, shape[1] - len(ids) :] = 1
    return batch
