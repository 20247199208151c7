"""RMSNorm of a frozen base as one function: its input is all that is kept for the backward pass.

As transformers writes it, autograd keeps several tensors of the input's size, most of them in
float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from peft_lightning.kernels.native import elementwise
from peft_lightning.kernels.recompute import set_recipe


def fuse_norms(model: nn.Module) -> int:
    """Let the RMSNorm layers of a frozen model compute by one function; return how many do.

    A layer is taken if it gives what ``weight * x / sqrt(mean(x^2) + eps)`` gives on random
    numbers, which Gemma's, with its ``1 + weight``, does not. Where a weight is trained, or the
    layer fails on them, its own code runs.
    """
    found = [module for module in model.modules() if _is_rms_norm(module)]
    for layer in found:
        layer.forward = partial(_forward, layer, layer.forward)
    return len(found)


def _is_rms_norm(layer: Any) -> bool:
    weight = getattr(layer, "weight", None)
    if not type(layer).__name__.endswith("RMSNorm") or weight is None or weight.ndim != 1:
        return False
    if weight.is_meta or _eps(layer) is None:
        return False
    with torch.random.fork_rng([]), torch.no_grad():
        x = torch.randn(1, 3, len(weight)).to(weight)
        try:
            theirs, ours = layer(x), _RMSNorm.apply(x, weight, _eps(layer))[0]
        except Exception:  # whatever a layer of this name is given beside its input
            return False
    if not isinstance(theirs, Tensor) or theirs.dtype != ours.dtype:
        return False
    return torch.allclose(theirs, ours, rtol=2 * torch.finfo(x.dtype).eps, atol=1e-6)


def _eps(layer: Any) -> float | None:
    return getattr(layer, "variance_epsilon", getattr(layer, "eps", None))


def _forward(layer: Any, original: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if layer.weight.requires_grad or torch.compiler.is_compiling():
        return original(x)
    y, inverse = _RMSNorm.apply(x, layer.weight, _eps(layer))
    if y.requires_grad:
        set_recipe(y, _scaled, x, inverse, layer.weight)
    return y


def _norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # of the root mean square
    return weight * (wide * inverse).to(x.dtype), inverse


def _scaled(x: Tensor, inverse: Tensor, weight: Tensor) -> Tensor:
    if (y := elementwise.scaled(x, inverse, weight)) is not None:
        return y
    return weight * (x.to(inverse.dtype) * inverse).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        y, inverse = elementwise.norm(x, weight, eps) or _norm(x, weight, eps)
        ctx.mark_non_differentiable(inverse)
        ctx.save_for_backward(x, inverse, weight)
        return y, inverse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, weight = ctx.saved_tensors
        if (d_x := elementwise.norm_backward(x, inverse, weight, grads[0])) is not None:
            return d_x, None, None
        grad = (grads[0] * weight).to(inverse.dtype)
        normed = x.to(inverse.dtype) * inverse
        along = (normed * grad).sum(-1, keepdim=True).div_(-x.shape[-1])
        return grad.addcmul_(normed, along).mul_(inverse).to(x.dtype), None, None
