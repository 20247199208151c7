"""Causal attention on the CPU: by the compiled kernels, or by torch's products where they cannot.

Without them, blocks of queries meet all their keys: torch's own CPU kernel multiplies bfloat16
numbers one by one in its backward pass, and computes much of what the causal mask then discards.
Here every product goes to the matrix library, the scores stay in float32, and nothing but query,
key and value is kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from peft_lightning.kernels.native.attention import native_attention, takes_attention

_Lens = tuple[Sequence[int], Sequence[int]]  # queries and keys of each sequence

BLOCK = 128  # queries at a time: small enough to skip half of the square, and to stay in cache


@dataclass(frozen=True)
class Causal:
    """Which keys a query sees, and how its scores are shaped.

    Args:
        scaling: Factor on the scores.
        window: Keys that a query sees, itself included; None for all before it.
        softcap: ``softcap * tanh(scores / softcap)``; None for none.
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None


def cpu_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lens: Sequence[int],
    key_lens: Sequence[int],
    causal: Causal,
) -> Tensor:
    """Attend causally within each sequence of a flat batch.

    Args:
        query: (1, H, T, D).
        key: (1, G, K, D), G a divisor of H.
        value: (1, G, K, Dv).
        lens: Queries of each sequence; they add up to T.
        key_lens: Its keys, the last of which are its queries' own; they add up to K.
        causal: The rest.

    Returns:
        (1, T, H, Dv), the layout that the next layer reads.
    """
    if causal.softcap is None and takes_attention(query, key, value, causal.scaling):
        shape = causal.scaling, causal.window
        return native_attention(query, key, value, lens, key_lens, *shape)
    return CPUAttention.apply(query, key, value, (lens, key_lens), causal)


class CPUAttention(torch.autograd.Function):
    """``cpu_attention`` by torch, for autograd; ``compiled_attention`` calls its parts itself."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, lens: _Lens, causal: Causal
    ) -> Tensor:
        _, heads, length, _ = query.shape
        out = query.new_empty(1, length, heads, value.shape[-1])
        with _products_of(query.dtype):
            for block in _blocks(query, key, lens, causal):
                weights = torch.softmax(block.scores(causal), -1)
                values = value[0, :, block.keys]
                result = torch.bmm(block.grouped(weights).to(value.dtype), values)
                out[0, block.queries] = block.ungrouped(result).transpose(0, 1)
        ctx.save_for_backward(query, key, value)
        ctx.lens, ctx.causal = lens, causal
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        causal, dtype = ctx.causal, query.dtype
        grad = grads[0][0].transpose(0, 1)  # (H, T, Dv)
        # (T, H, D) in memory, seen as (H, T, D): what the projections' backward reads
        d_query = torch.empty_like(query[0].transpose(0, 1), memory_format=torch.contiguous_format)
        d_key, d_value = (
            torch.zeros_like(x[0].transpose(0, 1), dtype=_wide(dtype)).transpose(0, 1)
            for x in (key, value)
        )
        with _products_of(dtype):
            for block in _blocks(query, key, ctx.lens, causal):
                scores = block.scores(causal)
                weights = torch.softmax(scores, -1)  # (G, R, n, m)
                d_out = block.group(grad)  # (G, R * n, Dv)
                values = value[0, :, block.keys]
                d_weights = torch.bmm(d_out.to(_wide(dtype)), _wide_transposed(values))
                d_scores = torch._softmax_backward_data(
                    d_weights.view_as(weights), weights, -1, weights.dtype
                )
                if causal.softcap is not None:
                    d_scores *= 1 - (scores / causal.softcap).square().nan_to_num(posinf=1.0)
                weights, d_scores = (
                    block.grouped(x).to(dtype) for x in (weights, d_scores.mul_(causal.scaling))
                )
                found = torch.bmm(d_scores, key[0, :, block.keys])
                d_query[block.queries] = block.ungrouped(found).transpose(0, 1)
                d_value[:, block.keys] += torch.bmm(weights.transpose(1, 2), d_out)
                d_key[:, block.keys] += torch.bmm(d_scores.transpose(1, 2), block.group(query[0]))
        return (
            d_query.transpose(0, 1)[None],
            d_key.to(dtype)[None],
            d_value.to(dtype)[None],
            *[None] * 2,
        )


@dataclass(frozen=True)
class _Block:
    """Queries of one sequence and the keys that they see.

    Args:
        queries: Their places in the flat batch, n of them.
        keys: The same of the keys, m of them; the last n are the queries' own.
        query: (H, n, D), scaled, in float32 at least.
        key: (G, D, m), in float32 at least.
    """

    queries: slice
    keys: slice
    query: Tensor
    key: Tensor

    @property
    def size(self) -> int:
        return self.queries.stop - self.queries.start

    def group(self, x: Tensor) -> Tensor:
        """Return the queries' rows of (H, T, D) as (G, R * n, D): those of a key head together."""
        return self._grouped_heads(x[:, self.queries])

    def grouped(self, x: Tensor) -> Tensor:
        """Return (G, R, n, m) as (G, R * n, m)."""
        return x.flatten(1, 2)

    def ungrouped(self, x: Tensor) -> Tensor:
        """Return (G, R * n, D) as (H, n, D)."""
        return x.reshape(-1, self.size, x.shape[-1])

    def scores(self, causal: Causal) -> Tensor:
        """Return the scores (G, R, n, m), -inf for keys that are not seen."""
        scores = torch.bmm(self._grouped_heads(self.query), self.key)
        keys = self.key.shape[-1]
        scores = scores.view(len(self.key), -1, self.size, keys)
        if causal.softcap is not None:
            scores = scores.div_(causal.softcap).tanh_().mul_(causal.softcap)
        scores[..., -self.size :] += _future(self.size, scores.dtype)
        if causal.window is not None and keys > causal.window:
            age = torch.arange(keys - self.size, keys)[:, None] - torch.arange(keys)
            scores.masked_fill_(age >= causal.window, -torch.inf)
        return scores

    def _grouped_heads(self, x: Tensor) -> Tensor:
        return x.reshape(len(self.key), -1, x.shape[-1])


@cache
def _future(size: int, dtype: torch.dtype) -> Tensor:
    """Return (n, n): -inf for keys after the query, else 0."""
    return torch.full((size, size), -torch.inf, dtype=dtype).triu_(1)


def _blocks(query: Tensor, key: Tensor, lens: _Lens, causal: Causal) -> Iterator[_Block]:
    """Yield the blocks of every sequence."""
    ends = zip(*lens, *map(accumulate, lens), strict=True)
    for length, key_length, end, key_end in ends:
        scaled = query[0, :, end - length : end].to(_wide(query.dtype)) * causal.scaling
        turned = _wide_transposed(key[0, :, key_end - key_length : key_end])
        for first in range(0, length, BLOCK):
            last = min(first + BLOCK, length)
            seen, stop = 0, last + key_length - length
            if causal.window is not None:
                seen = max(0, first + key_length - length - causal.window + 1)
            yield _Block(
                slice(end - length + first, end - length + last),
                slice(key_end - key_length + seen, key_end - key_length + stop),
                scaled[:, first:last],
                turned[:, :, seen:stop],
            )


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _wide_transposed(x: Tensor) -> Tensor:
    """Return (G, L, D) as (G, D, L) in float32 at least."""
    return x.to(_wide(x.dtype)).transpose(1, 2)


@contextmanager
def _bfloat16_products() -> Iterator[None]:
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _products_of(dtype: torch.dtype) -> Any:
    """Multiply float32 copies of bfloat16 numbers as the bfloat16 they are, summed in float32.

    That is exact for them, and the one way to a product of bfloat16 tensors in float32 on a CPU.
    """
    return _bfloat16_products() if dtype == torch.bfloat16 else nullcontext()
