"""Rotary positions in one pass over queries and keys, forward and backward, on a CPU.

transformers writes ``x * cos + rotate_half(x) * sin``, which is seven passes, and as many backward.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from peft_lightning.kernels.native import elementwise

THEIRS = "apply_rotary_pos_emb"  # the function that an attention layer's forward calls


def fuse_rotary(model: nn.Module) -> int:
    """Let attention layers of ``model`` turn queries and keys by one kernel; return how many do.

    A layer is taken if the function of its module gives what ``x * cos + rotate_half(x) * sin``
    gives on random numbers. Its forward is run as it is, with another function under that name:
    transformers' module and other models are left alone.
    """
    taken = 0
    for layer in model.modules():
        forward = type(layer).forward
        if THEIRS not in getattr(getattr(forward, "__code__", None), "co_names", ()):
            continue
        if "forward" in vars(layer):  # somebody has given it another
            continue
        if (theirs := forward.__globals__.get(THEIRS)) is not None and _turns_halves(theirs):
            layer.forward = partial(_with(forward, partial(_turned, theirs)), layer)
            taken += 1
    return taken


def _turns_halves(theirs: Callable[..., Any]) -> bool:
    with torch.random.fork_rng([]), torch.no_grad():
        query, key = torch.randn(2, 1, 2, 3, 8, dtype=torch.float64)
        cos, sin = torch.randn(2, 1, 3, 8, dtype=torch.float64)
        try:
            found = theirs(query, key, cos, sin)
        except (TypeError, ValueError, RuntimeError):  # it is called in another way
            return False
        for x, turned in zip((query, key), found, strict=True):
            half = torch.cat([-x[..., 4:], x[..., :4]], -1)
            if not torch.allclose(turned.double(), x * cos + half * sin, rtol=1e-5, atol=1e-6):
                return False
    return True


def _with(forward: Any, function: Callable[..., Any]) -> Any:
    """Return ``forward`` with ``function`` as what its module calls ``THEIRS``."""
    names = {**forward.__globals__, THEIRS: function}
    copy = FunctionType(
        forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__
    )
    copy.__kwdefaults__, copy.__module__ = forward.__kwdefaults__, __name__
    return copy


def _turned(theirs: Callable[..., Any], *given: Any, **how: Any) -> Any:
    usual = len(given) == 4 and not how and all(isinstance(x, Tensor) for x in given)
    if not usual or torch.compiler.is_compiling():  # such as a query alone
        return theirs(*given, **how)
    query, key, cos, sin = given
    if not all(elementwise.takes_rotated(x, cos, sin) for x in (query, key)):
        return theirs(query, key, cos, sin)
    return _Rotary.apply(query, cos, sin), _Rotary.apply(key, cos, sin)


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return elementwise.rotated(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return elementwise.rotated(grads[0], cos, sin, back=True), None, None
