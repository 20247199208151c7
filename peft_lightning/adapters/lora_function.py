"""The LoRA update and its gradient as one function, for all layers that read the same input.

Left to autograd, each product of a LoRA layer is stored and added on its own. Here the update is
added by the product that computes it, forward and backward, and what is kept is the input and
(tokens, r) numbers per layer. For layers that share their input, such as q, k and v, the
gradients of the input are summed in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Projection(NamedTuple):
    """One layer of those that share an input.

    Args:
        weight: (out, in), frozen.
        bias: (out,), frozen, or None.
        a: lora_A's weight, (r, in).
        b: lora_B's, (out, r).
        scaling: Factor on the update.
    """

    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor
    scaling: float


def lora_linear(x: Tensor, layers: Sequence[Projection]) -> tuple[Tensor, ...]:
    """Return ``x W^T + bias + scaling * x A^T B^T`` of each layer, computed in the dtype of ``x``.

    Args:
        x: (..., in), in the dtype to compute in; weights of others are cast to it. If it has an
            attribute ``remake``, (function, tensors), it is not kept for the backward pass but
            made again by ``function(*tensors)``: a norm's or activation's output, cheaply.
        layers: Those that read ``x``; no gradient is computed of their weights and biases.

    Returns:
        One (..., out) for each layer.
    """
    tensors = [t for layer in layers for t in layer[:4]]
    remake, makers = getattr(x, "remake", (None, ()))
    scalings = [layer.scaling for layer in layers]
    return _LoRALinear.apply(x, scalings, remake, [t.detach() for t in makers], *tensors)


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scalings: list[float],
        remake: Callable[..., Tensor] | None,
        makers: list[Tensor],
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1])  # (N, in)
        downs, results = [], []
        for (weight, bias, a, b), scaling in zip(_fours(tensors), scalings, strict=True):
            weight = weight.to(x.dtype)
            y = flat @ weight.T if bias is None else torch.addmm(bias.to(x.dtype), flat, weight.T)
            down = flat @ a.to(x.dtype).T  # (N, r)
            y.addmm_(down, (b * scaling).to(x.dtype).T)
            downs.append(down)
            results.append(y.view(*x.shape[:-1], -1))
        kept = [t for weight, _, a, b in _fours(tensors) for t in (weight, a, b)]
        ctx.save_for_backward(*downs, *kept, *(makers or [flat]))
        ctx.scalings, ctx.shape, ctx.remake = scalings, x.shape, remake
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        n = len(ctx.scalings)
        saved = ctx.saved_tensors
        downs, weights, source = saved[:n], saved[n : 4 * n], saved[4 * n :]
        flat = source[0] if ctx.remake is None else ctx.remake(*source).flatten(0, -2)
        needs_x = ctx.needs_input_grad[0]
        d_x: Tensor | None = None
        found: list[Tensor | None] = []
        for i, (grad, scaling, down) in enumerate(zip(grads, ctx.scalings, downs, strict=True)):
            weight, a, b = weights[3 * i : 3 * i + 3]
            dy = grad.reshape(-1, grad.shape[-1]).to(flat.dtype)  # (N, out)
            d_down = dy @ (b * scaling).to(dy.dtype)  # (N, r)
            d_a = (d_down.T @ flat).to(a.dtype)
            d_b = (dy.T @ down).to(b.dtype) * scaling
            found += [None, None, d_a, d_b]
            if needs_x:
                weight = weight.to(dy.dtype)
                d_x = dy @ weight if d_x is None else d_x.addmm_(dy, weight)
                d_x.addmm_(d_down, a.to(dy.dtype))
        return None if d_x is None else d_x.view(ctx.shape), None, None, None, *found


def _fours(tensors: Sequence[Any]) -> list[Any]:
    """Return (weight, bias, a, b) of each layer."""
    return [tensors[i : i + 4] for i in range(0, len(tensors), 4)]
