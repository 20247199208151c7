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

from peft_lightning.kernels.native.buffers import empty
from peft_lightning.kernels.native.stored import multiply, multiply_back
from peft_lightning.kernels.recompute import find_recipe


class Projection(NamedTuple):
    """One layer of those that share an input.

    Args:
        weight: (out, in), frozen, of any floating dtype or packed.
        bias: (out,), frozen or trained, or None.
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
        x: (..., in), in the dtype to compute in; weights of others are converted where they are
            multiplied, and kept for the backward pass as they are. If ``x`` has a ``Recipe``,
            as the output of a fused norm or activation has, it is not kept for the backward pass
            but computed again.
        layers: Those that read ``x``; no gradient is computed of their weights.

    Returns:
        One (..., out) for each layer.
    """
    tensors = [t for layer in layers for t in layer[:4]]
    recipe = find_recipe(x)
    function, sources = (None, []) if recipe is None else (recipe.function, recipe.detached())
    scalings = [layer.scaling for layer in layers]
    return _LoRALinear.apply(x, scalings, function, sources, *tensors)


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scalings: list[float],
        recompute: Callable[..., Tensor] | None,
        sources: list[Tensor],
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1])  # (N, in)
        fours = _fours(tensors)
        stacked = _stacked(fours, x.dtype)  # (R, in), R the sum of the ranks
        down = flat @ stacked.T  # (N, R)
        results = []
        for (weight, bias, _, b), scaling, part in zip(
            fours, scalings, _parts(down, fours), strict=True
        ):
            # of its final shape: a view would be an error where a model adds to it in place
            y = empty((*x.shape[:-1], len(b)), like=flat)
            multiply(flat, weight, y.view(len(flat), len(b)), bias)
            y.view(len(flat), len(b)).addmm_(part, (b * scaling).to(x.dtype).T)
            results.append(y)
        ctx.save_for_backward(down, *tensors, *(sources or [flat]))
        ctx.scalings, ctx.shape, ctx.recompute = scalings, x.shape, recompute
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        down, *saved = ctx.saved_tensors
        count = 4 * len(ctx.scalings)
        fours, source = _fours(saved[:count]), saved[count:]
        flat = source[0] if ctx.recompute is None else ctx.recompute(*source).flatten(0, -2)
        needs_x = ctx.needs_input_grad[0]
        d_x: Tensor | None = None
        d_downs, d_bs, d_biases = [], [], []  # type: ignore[var-annotated]
        for grad, (weight, _, _, b), scaling, part in zip(
            grads, fours, ctx.scalings, _parts(down, fours), strict=True
        ):
            dy = grad.reshape(-1, grad.shape[-1]).to(flat.dtype)  # (N, out)
            d_downs.append(dy @ (b * scaling).to(dy.dtype))  # (N, r)
            d_bs.append((part.T @ dy).T.to(b.dtype) * scaling)
            trains_bias = ctx.needs_input_grad[4 + 4 * len(d_biases) + 1]
            d_biases.append(dy.sum(0) if trains_bias else None)
            if needs_x:
                if d_x is None:
                    d_x = multiply_back(dy, weight, empty(flat.shape, like=dy))
                else:
                    multiply_back(dy, weight, d_x, add=True)
        d_down = torch.cat(d_downs, 1)  # (N, R)
        d_as = (d_down.T @ flat).to(fours[0][2].dtype).split([a.shape[0] for _, _, a, _ in fours])
        if d_x is not None:
            d_x = d_x.addmm_(d_down, _stacked(fours, flat.dtype)).view(ctx.shape)
        each = zip(d_biases, d_as, d_bs, strict=True)
        found = [g for d_bias, d_a, d_b in each for g in (None, d_bias, d_a, d_b)]
        return d_x, None, None, None, *found


def _stacked(fours: Sequence[Any], dtype: torch.dtype) -> Tensor:
    """Return the ``A`` of all layers below each other: one product with the shared input."""
    return torch.cat([a.to(dtype) for _, _, a, _ in fours])


def _parts(down: Tensor, fours: Sequence[Any]) -> tuple[Tensor, ...]:
    """Split (N, R) into each layer's (N, r)."""
    return down.split([a.shape[0] for _, _, a, _ in fours], 1)


def _fours(tensors: Sequence[Any]) -> list[Any]:
    """Return (weight, bias, a, b) of each layer."""
    return [tensors[i : i + 4] for i in range(0, len(tensors), 4)]
