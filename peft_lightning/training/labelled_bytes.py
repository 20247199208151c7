"""The bytes of text in the loss of a batch, for bits per byte."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peft_lightning.data.tokens.token_bytes import TokenBytes, token_bytes
from peft_lightning.linear_cross_entropy import labelled_positions


class LabelledBytes:
    """Counts the UTF-8 bytes of the labelled tokens of batches.

    Args:
        tokenizer: That of the batches; its table of bytes is made at the first batch. None if it
            is not known.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._table: TokenBytes | None = None
        self._lengths: Tensor | None = None  # on the device of the batches
        self._begins: Tensor | None = None

    def count(self, batch: Any) -> tuple[Tensor, Tensor] | None:
        """Return the labelled tokens of a batch and their bytes, both weighted by their weights.

        Args:
            batch: ``input_ids`` and ``labels``, (B, T), and for a flat batch ``cu_seq_lens``;
                ``loss_weights`` if the tokens have weights.

        Returns:
            Two float64 scalars; None for a batch of another form, and without a tokenizer whose
            tokens have bytes that are known.
        """
        if not _has_tokens(batch) or not self._is_known(batch["labels"].device):
            return None
        assert self._table is not None
        assert self._lengths is not None
        assert self._begins is not None
        labels, ends = batch["labels"], batch.get("cu_seq_lens")
        weights = batch.get("loss_weights")
        positions, targets, weights = labelled_positions(labels, ends, weights=weights)
        most = len(self._lengths) - 1
        targets = targets.clamp(max=most)
        lengths = self._lengths[targets]
        if self._table.adds_space:  # which the text behind the BOS token does not have
            before = batch["input_ids"].flatten()[positions].clamp(max=most)
            is_first = positions % labels.shape[1] == 0
            if ends is not None:
                is_first = torch.isin(positions, ends[:-1].long())
            added = is_first & (self._lengths[before] == 0) & self._begins[targets]
            lengths = lengths - added.long()
        of_tokens = torch.ones_like(lengths, dtype=torch.float64)
        if weights is not None:
            of_tokens = weights.double()
        return of_tokens.sum(), (of_tokens * lengths).sum()

    def _is_known(self, device: torch.device) -> bool:
        if self.tokenizer is not None and self._table is None:
            self._table = token_bytes(self.tokenizer)
            self.tokenizer = None  # not asked again
        if self._table is None:
            return False
        if self._lengths is None or self._lengths.device != device:
            self._lengths = torch.from_numpy(self._table.lengths).to(device)
            self._begins = torch.from_numpy(self._table.begins_with_space).to(device)
        return True


def tokenizer_of_batches(trainer: Any, module: Any) -> Any:
    """Return the tokenizer of the batches: the data module's or the model's, or None."""
    data = getattr(trainer, "datamodule", None)
    return getattr(data, "tokenizer", None) or getattr(module, "tokenizer", None)


def _has_tokens(batch: Any) -> bool:
    if not isinstance(batch, Mapping):
        return False
    labels, ids = batch.get("labels"), batch.get("input_ids")
    if not isinstance(labels, Tensor) or not isinstance(ids, Tensor):
        return False
    return labels.ndim == 2 and labels.shape == ids.shape and not labels.is_floating_point()
