"""Causal attention within each sequence of a flat batch, by the compiled kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from peft_lightning.kernels.native.buffers import empty
from peft_lightning.kernels.native.library import TYPES, address, function, kernels

_EVERYTHING = 1 << 40  # a window that no sequence is longer than


class _Shape(ctypes.Structure):  # as attention.h has it
    _fields_ = (
        *((n, ctypes.c_int64) for n in ("sequences", "heads", "groups", "dim", "value_dim")),
        ("window", ctypes.c_int64),
        ("lens", ctypes.POINTER(ctypes.c_int64)),
        ("key_lens", ctypes.POINTER(ctypes.c_int64)),
        ("scaling", ctypes.c_float),
    )


class _View(ctypes.Structure):  # likewise
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("head", ctypes.c_int64),
        ("token", ctypes.c_int64),
    )


def takes_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> bool:
    """Whether ``native_attention`` computes this."""
    if kernels(query, key, value) is None or query.dtype not in multiplied():
        return False
    even = query.shape[-1] % 2 == 0 and value.shape[-1] % 2 == 0
    return even and scaling > 0 and query.shape[2] > 0


def native_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lens: Sequence[int],
    key_lens: Sequence[int],
    scaling: float,
    window: int | None,
) -> Tensor:
    """Attend causally within each sequence of a flat batch.

    Args:
        query: (1, H, T, D), as ``takes_attention`` wants it.
        key: (1, G, K, D), G a divisor of H.
        value: (1, G, K, Dv).
        lens: Queries of each sequence; they add up to T.
        key_lens: Its keys, the last of which are its queries' own; they add up to K.
        scaling: Factor on the scores.
        window: Keys that a query sees, itself included; None for all before it.

    Returns:
        (1, T, H, Dv).
    """
    return _Attention.apply(query, key, value, tuple(lens), tuple(key_lens), scaling, window)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        lens: tuple[int, ...],
        key_lens: tuple[int, ...],
        scaling: float,
        window: int | None,
    ) -> Tensor:
        query, key, value = (
            x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value)
        )
        _, heads, tokens, dim = query.shape
        groups, value_dim = key.shape[1], value.shape[3]
        counts = [ctypes.c_int64 * len(lens)] * 2
        ctx.shape = _Shape(
            *(len(lens), heads, groups, dim, value_dim),
            _EVERYTHING if window is None else window,
            *(kind(*numbers) for kind, numbers in zip(counts, (lens, key_lens), strict=True)),
            scaling,
        )
        out = empty((1, tokens, heads, value_dim), query)
        kept = torch.empty(2, heads, tokens, dtype=torch.float32)
        _run("attention", ctx.shape, [query, key, value, out.transpose(1, 2)], kept)
        ctx.save_for_backward(query, key, value, out, kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, kept = ctx.saved_tensors
        # (1, T, H, D) in memory, seen as (1, H, T, D): what the projections' backward reads
        found = [empty(x.transpose(1, 2).shape, x) for x in (query, key, value)]
        d_query, d_key, d_value = (x.transpose(1, 2) for x in found)
        given = [query, key, value, out.transpose(1, 2), grads[0].contiguous().transpose(1, 2)]
        _run("attention_backward", ctx.shape, [*given, d_query, d_key, d_value], kept)
        return d_query, d_key, d_value, *[None] * 4


def _run(name: str, shape: _Shape, tensors: list[Tensor], kept: Tensor) -> None:
    views = (_View * len(tensors))(*(_View(x.data_ptr(), *x.stride()[1:3]) for x in tensors))
    library: Any = kernels(*tensors)
    run = function(library, name, tensors[0].dtype)
    if run(ctypes.byref(shape), views, address(kept)):
        raise RuntimeError(f"{name} cannot be computed for {tensors[0].dtype} on this processor")


@cache
def multiplied() -> set[torch.dtype]:
    """Return the dtypes that the matrix library multiplies on this processor, each tried once."""
    found = set()
    for dtype in TYPES:
        value = torch.arange(6, dtype=dtype).view(1, 1, 3, 2)
        try:
            out = native_attention(torch.zeros_like(value), value, value, [3], [3], 1.0, None)
        except RuntimeError:
            continue
        mean = torch.tensor([[0, 1], [1, 2], [2, 3]], dtype=dtype)  # of those up to each
        if torch.equal(out[0, :, 0], mean):
            found.add(dtype)
    return found
