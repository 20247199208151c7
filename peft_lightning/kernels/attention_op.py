"""Attention on the CPU as one operation that torch.compile leaves alone, forward and backward.

Its loop over sequences would be compiled anew for every number of them.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from peft_lightning.kernels.attention_cpu import Causal, CPUAttention


@torch.library.custom_op("peft_lightning::cpu_attention", mutates_args=())
def compiled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Attend causally within each sequence of a flat batch: see ``cpu_attention``.

    Args:
        query: (1, H, T, D).
        key: (1, G, T, D).
        value: (1, G, T, Dv).
        ends: (S + 1,) cumulative lengths of the sequences.
        scaling: Factor on the scores.
        window: As ``Causal`` has it.
        softcap: Likewise.

    Returns:
        (1, T, H, Dv).
    """
    lens, causal = ends.diff().tolist(), Causal(scaling, window, softcap)
    context: Any = SimpleNamespace(save_for_backward=lambda *tensors: None)
    return CPUAttention.forward(context, query, key, value, (lens, lens), causal)


@compiled_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
    return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])


@torch.library.custom_op("peft_lightning::cpu_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    lens, causal = ends.diff().tolist(), Causal(scaling, window, softcap)
    saved = (query, key, value)
    context: Any = SimpleNamespace(saved_tensors=saved, lens=(lens, lens), causal=causal)
    found: Any = CPUAttention.backward(context, grad)
    return found[0].contiguous(), found[1].contiguous(), found[2].contiguous()


@_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, key, value, ends, *ctx.options = inputs
    ctx.save_for_backward(query, key, value, ends)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(grad, *ctx.saved_tensors, *ctx.options), None, None, None, None


compiled_attention.register_autograd(_gradients, setup_context=_setup)
