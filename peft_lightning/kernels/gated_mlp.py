"""The activation of a gated MLP as one function that keeps its two inputs for the backward pass.

As transformers writes ``act_fn(gate_proj(x)) * up_proj(x)``, autograd keeps the activation and the
product too. Both are made again from what is kept, which costs two passes over the elements.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.activations import ACT2FN

from peft_lightning.kernels.native import elementwise
from peft_lightning.kernels.native.stored import stored_forward
from peft_lightning.kernels.recompute import set_recipe

PARTS = ("gate_proj", "up_proj", "down_proj", "act_fn")


def fuse_gated_mlps(model: nn.Module) -> int:
    """Let the gated MLPs of ``model`` keep less for the backward pass; return how many do.

    A kind of layers, of one class and activation, is taken if it gives what
    ``down_proj(act_fn(gate_proj(x)) * up_proj(x))`` gives on random numbers; one that fails on them
    keeps its own code.
    """
    found = [m for m in model.modules() if all(hasattr(m, name) for name in PARTS)]
    checked = {_kind(layer): _is_gated_mlp(layer) for layer in reversed(found)}
    taken = [layer for layer in found if checked[_kind(layer)]]
    for layer in taken:
        layer.forward = partial(_forward, layer, layer.forward)
    return len(taken)


def _kind(layer: Any) -> tuple[Any, ...]:
    """Return what a layer shares with those that compute alike, a ``forward`` of its own too."""
    return type(layer), type(layer.act_fn), id(layer.__dict__.get("forward"))


def _is_gated_mlp(layer: Any) -> bool:
    weight: Any = getattr(layer.gate_proj, "weight", None)
    if not isinstance(layer.gate_proj, nn.Linear) or weight.is_meta:
        return False
    if not weight.is_floating_point() and stored_forward(layer.gate_proj) is None:
        return False  # quantised: what the first input is decides how the layer computes
    if next(layer.act_fn.parameters(), None) is not None:
        return False
    with torch.random.fork_rng([]), torch.no_grad():
        x = torch.randn(1, 3, layer.gate_proj.in_features, device=weight.device)
        x = x.to(weight.dtype) if weight.is_floating_point() else x
        try:
            product = layer.act_fn(layer.gate_proj(x)) * layer.up_proj(x)
            return torch.equal(layer(x), layer.down_proj(product))
        except Exception:  # whatever a layer of the same parts is given beside its input
            return False


def _forward(layer: Any, original: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return original(x)
    return layer.down_proj(_product(layer, x))


def _product(layer: Any, x: Tensor) -> Tensor:
    gate, up = layer.gate_proj(x), layer.up_proj(x)
    product = _Gated.apply(layer.act_fn, gate, up)
    if product.requires_grad:
        set_recipe(product, partial(_gated, layer.act_fn), gate, up)
    return product


def _gated(activation: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
    if _is_silu(activation) and (out := elementwise.gated(gate, up)) is not None:
        return out
    return activation(gate) * up


def _is_silu(activation: Any) -> bool:
    return type(activation) in (nn.SiLU, type(ACT2FN["silu"]))


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, activation: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor
    ) -> Tensor:
        ctx.activation = activation
        ctx.save_for_backward(gate, up)
        return _gated(activation, gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        if _is_silu(ctx.activation) and (found := elementwise.gated_backward(gate, up, grads[0])):
            return None, *found
        with torch.enable_grad():
            gate = gate.detach().requires_grad_()
            active = ctx.activation(gate)
        (d_gate,) = torch.autograd.grad(active, gate, grads[0] * up)
        return None, d_gate, grads[0] * active.detach()
