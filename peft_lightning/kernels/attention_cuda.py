"""Attention over flat batches on a GPU: torch's flash kernel for sequences of varying length."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor


def takes_varlen(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel computes attention of these, without dropout, soft cap, sinks or prefix.

    Flash attention's limits: half precision, one head size of at most 256 and a multiple of 8.

    Args:
        query: (1, H, T, D).
        key: (1, G, T, D), G a divisor of H.
        value: (1, G, T, Dv).
    """
    size = query.shape[-1]
    return (
        query.dtype in (torch.bfloat16, torch.float16)
        and query.dtype == key.dtype == value.dtype
        and query.shape[2] == key.shape[2]
        and size == value.shape[-1]
        and size <= 256
        and size % 8 == 0
    )


def varlen_inputs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> dict[str, Any]:
    """Return the arguments of ``torch.nn.attention.varlen.varlen_attn``.

    Args:
        query: (1, H, T, D).
        key: (1, G, T, D).
        value: (1, G, T, D).
        ends: (S + 1,) int32, cumulative lengths.
        longest: The largest of them.
        scaling: Factor on the scores; 1 / sqrt(D) if None.
        window: Keys that a query sees, itself included; None for all before it.
    """
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, H, D)
    return {
        "query": query,
        "key": key,
        "value": value,
        "cu_seq_q": ends,
        "cu_seq_k": ends,
        "max_q": longest,
        "max_k": longest,
        "scale": scaling,
        "window_size": (-1 if window is None else window - 1, 0),  # before and behind a query
        "enable_gqa": query.shape[1] != key.shape[1],
    }


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
    """Attend causally within each sequence; arguments as for ``varlen_inputs``.

    Returns:
        (1, T, H, D).
    """
    from torch.nn.attention.varlen import varlen_attn

    out: Any = varlen_attn(**varlen_inputs(query, key, value, *rest))
    return out[None]


@cache
def has_varlen(device: torch.device) -> bool:
    """Whether ``device`` and this torch have the kernel: from Ampere on, with grouped heads."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    from torch.nn.attention.varlen import varlen_attn

    return {"window_size", "enable_gqa", "scale"} <= set(inspect.signature(varlen_attn).parameters)
