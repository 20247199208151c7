"""Positions of virtual tokens in a batch: directly before the text of each sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class PromptPositions:
    """Indices of a batch's tokens and of virtual tokens in the widened batch, flattened.

    Args:
        batch_size: Rows of the batch, B.
        tokens: (B * T,) int64, the new index of each token.
        virtual_tokens: (S, n) int64, the indices of the virtual tokens of each of S sequences.
    """

    batch_size: int
    tokens: Tensor
    virtual_tokens: Tensor

    @classmethod
    def before_sequences(cls, cu_seq_lens: Tensor, length: int, n: int) -> Self:
        """Return the positions for virtual tokens before each sequence of a flat batch.

        Args:
            cu_seq_lens: (S + 1,) int32, the boundaries of S sequences, from 0 to ``length``.
            length: Tokens of the flat batch.
            n: Virtual tokens before each sequence.
        """
        starts = cu_seq_lens[:-1].long()  # (S,)
        places = torch.arange(length, device=starts.device)
        sequence = torch.bucketize(places, cu_seq_lens[1:].long(), right=True)  # (T,)
        first = starts + n * torch.arange(len(starts), device=starts.device)
        virtual = first[:, None] + torch.arange(n, device=starts.device)
        return cls(1, places + n * (sequence + 1), virtual)

    @classmethod
    def before_text(cls, attention_mask: Tensor, n: int) -> Self:
        """Return the positions for virtual tokens before the text of each row of a padded batch.

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

    def insert_embeddings(self, embeds: Tensor, prompt: Tensor) -> Tensor:
        """Return ``embeds``, (B, T, dim), with ``prompt``, (n, dim), inserted, in its own dtype."""
        flat = embeds.new_empty(self._length(), embeds.shape[-1])
        flat.index_copy_(0, self.tokens, embeds.flatten(0, 1))
        sequences = self.virtual_tokens.shape[0]
        repeated = prompt.to(embeds.dtype).expand(sequences, -1, -1).flatten(0, 1)
        flat.index_copy_(0, self.virtual_tokens.flatten(), repeated)
        return flat.view(self.batch_size, -1, embeds.shape[-1])

    def insert_values(self, given: Tensor, virtual: Tensor | int) -> Tensor:
        """Return ``given``, (B, T), with ``virtual``, one value or (n,) values, inserted."""
        flat = given.new_empty(self._length())
        flat[self.tokens] = given.flatten()
        flat[self.virtual_tokens] = torch.as_tensor(virtual, dtype=given.dtype, device=given.device)
        return flat.view(self.batch_size, -1)

    def _length(self) -> int:
        return self.tokens.numel() + self.virtual_tokens.numel()
