"""Where virtual tokens go in a batch: directly before the text of each sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Insertion:
    """New places of a batch's tokens and of the virtual ones, in the widened, flattened batch.

    Args:
        rows_of: Rows of the batch, B.
        token: (B * T,) int64, the new place of each token.
        virtual: (S, n) int64, the places of the virtual tokens of each of S sequences.
    """

    rows_of: int
    token: Tensor
    virtual: Tensor

    @classmethod
    def before_sequences(cls, cu_seq_lens: Tensor, tokens: int, n: int) -> Self:
        """Insert ``n`` places before each sequence of a flat batch of ``tokens`` tokens.

        Args:
            cu_seq_lens: (S + 1,) int32, from 0 to ``tokens``.
            tokens: Length of the flat batch.
            n: Virtual tokens before each sequence.
        """
        starts = cu_seq_lens[:-1].long()  # (S,)
        places = torch.arange(tokens, device=starts.device)
        sequence = torch.bucketize(places, cu_seq_lens[1:].long(), right=True)  # (T,)
        first = starts + n * torch.arange(len(starts), device=starts.device)
        virtual = first[:, None] + torch.arange(n, device=starts.device)
        return cls(1, places + n * (sequence + 1), virtual)

    @classmethod
    def before_text(cls, attention_mask: Tensor, n: int) -> Self:
        """Insert ``n`` places before the first attended token of each row of a padded batch.

        Args:
            attention_mask: (B, T), 1 for text, 0 for padding on the left or right of it.
            n: Virtual tokens of each row.
        """
        rows, length = attention_mask.shape
        device = attention_mask.device
        first = (attention_mask != 0).int().argmax(dim=1, keepdim=True)  # (B, 1)
        places = torch.arange(length, device=device)[None]  # (1, T)
        row = torch.arange(rows, device=device)[:, None] * (length + n)  # (B, 1)
        token = row + places + n * (places >= first)
        return cls(rows, token.flatten(), row + first + torch.arange(n, device=device))

    def rows(self, embeds: Tensor, prompt: Tensor) -> Tensor:
        """Put ``prompt`` (n, dim) into ``embeds`` (B, T, dim), in the dtype of the latter."""
        flat = embeds.new_empty(self._length(), embeds.shape[-1])
        flat.index_copy_(0, self.token, embeds.flatten(0, 1))
        sequences = self.virtual.shape[0]
        repeated = prompt.to(embeds.dtype).expand(sequences, -1, -1).flatten(0, 1)
        flat.index_copy_(0, self.virtual.flatten(), repeated)
        return flat.view(self.rows_of, -1, embeds.shape[-1])

    def values(self, given: Tensor, virtual: Tensor | int) -> Tensor:
        """Put ``virtual``, one value or (n,) values, into ``given`` (B, T)."""
        flat = given.new_empty(self._length())
        flat[self.token] = given.flatten()
        flat[self.virtual] = torch.as_tensor(virtual, dtype=given.dtype, device=given.device)
        return flat.view(self.rows_of, -1)

    def _length(self) -> int:
        return self.token.numel() + self.virtual.numel()
