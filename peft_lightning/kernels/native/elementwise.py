"""RMSNorm, rotary positions and the product of a gated MLP with SiLU, by the compiled kernels.

Each function returns None where they do not take the tensors, which have to be contiguous.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from peft_lightning.kernels.native.buffers import empty
from peft_lightning.kernels.native.library import address, function, kernels


def gated(gate: Tensor, up: Tensor) -> Tensor | None:
    """Return ``silu(gate) * up``, both (..., n)."""
    if (run := _kernel("gated", gate, up)) is None:
        return None
    out = empty(gate.shape, gate)
    run(*_rows(gate), *map(address, (gate, up, out)))
    return out


def gated_backward(gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the gradients of ``gate`` and ``up`` from that of ``silu(gate) * up``."""
    grad = grad.contiguous()
    if (run := _kernel("gated_backward", gate, up, grad)) is None:
        return None
    d_gate, d_up = empty(gate.shape, gate), empty(up.shape, up)
    run(*_rows(gate), *map(address, (gate, up, grad, d_gate, d_up)))
    return d_gate, d_up


def norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor] | None:
    """Return RMSNorm of ``x`` (..., n), and 1 / root mean square of its rows, (..., 1) float32."""
    if (run := _kernel("norm", x, weight)) is None:
        return None
    y = empty(x.shape, x)
    inverse = torch.empty(*x.shape[:-1], 1, dtype=torch.float32)
    run(*_rows(x), *map(address, (x, weight)), ctypes.c_float(eps), *map(address, (y, inverse)))
    return y, inverse


def scaled(x: Tensor, inverse: Tensor, weight: Tensor) -> Tensor | None:
    """Return RMSNorm of ``x`` again, with what ``norm`` returned of its rows."""
    if (run := _kernel("scaled", x, weight)) is None:
        return None
    y = empty(x.shape, x)
    run(*_rows(x), *map(address, (x, weight, inverse, y)))
    return y


def norm_backward(x: Tensor, inverse: Tensor, weight: Tensor, grad: Tensor) -> Tensor | None:
    """Return the gradient of ``x`` from that of its RMSNorm."""
    grad = grad.contiguous()
    if (run := _kernel("norm_backward", x, weight, grad)) is None:
        return None
    d_x = empty(x.shape, x)
    run(*_rows(x), *map(address, (x, weight, inverse, grad, d_x)))
    return d_x


def takes_rotated(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether ``rotated`` computes this."""
    if kernels(x, cos, sin) is None or x.ndim != 4 or x.shape[-1] % 2:
        return False
    return cos.shape == sin.shape == (1, *x.shape[2:]) and x.shape[0] == 1


def rotated(x: Tensor, cos: Tensor, sin: Tensor, back: bool = False) -> Tensor:
    """Return ``x * cos + rotate_half(x) * sin``, or the gradient of ``x`` from that of it.

    Args:
        x: (1, H, T, D), as ``takes_rotated`` wants it.
        cos: (1, T, D).
        sin: (1, T, D).
        back: Whether ``x`` is the gradient.

    Returns:
        (1, H, T, D), in memory (1, T, H, D).
    """
    _, heads, tokens, dim = x.shape
    if x.stride(3) != 1 or x.stride(1) != dim:  # the heads of a token have to be neighbours
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    cos, sin = cos.contiguous(), sin.contiguous()
    y = empty((1, tokens, heads, dim), x)
    sizes = map(ctypes.c_int64, (tokens, heads, dim, x.stride(2)))
    run: Any = _kernel("rotated", cos, sin)
    run(*sizes, ctypes.c_float(-1.0 if back else 1.0), *map(address, (x, cos, sin, y)))
    return y.transpose(1, 2)


def _kernel(name: str, *tensors: Tensor) -> Any:
    library = kernels(*tensors)
    if library is None or not all(tensor.is_contiguous() for tensor in tensors):
        return None
    return function(library, name, tensors[0].dtype)


def _rows(x: Tensor) -> tuple[ctypes.c_int64, ctypes.c_int64]:
    """Return how many rows ``x`` has, and how long they are."""
    width = x.shape[-1]
    return ctypes.c_int64(x.numel() // max(1, width)), ctypes.c_int64(width)
