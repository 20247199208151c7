"""Products with frozen weights that are stored in another type than they are multiplied in.

A block of a weight's rows at a time is converted into memory that is used again for the next one.
Autograd keeps the weight as it is stored, and the backward pass converts it again. Where only a few
rows are multiplied, as in generation, kernels read the weight as it is stored.
"""

from __future__ import annotations

import copy
import ctypes
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from peft_lightning.kernels.native.buffers import empty
from peft_lightning.kernels.native.library import address, kernels

BLOCK = 1 << 20  # numbers that are converted at a time: 4 MiB of float32
FEW = 16  # rows up to which the kernels are faster than a conversion and a product

_SCRATCH = threading.local()  # by dtype: memory of converted weights
_KERNELS = {torch.bfloat16: "few_bfloat16", torch.float16: "few_float16"}


class Packed(ABC):
    """A matrix whose numbers are packed into the memory of a parameter, its attribute ``packed``.

    Args:
        shape: (out, in).
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape

    @abstractmethod
    def read(self, start: int, stop: int, to: Tensor) -> None:
        """Write rows ``start`` to ``stop`` to ``to``, (stop - start, in) float32."""

    @abstractmethod
    def multiply_few(self, x: Tensor, bias: Tensor | None, out: Tensor) -> bool:
        """Write ``x W^T + bias`` to ``out`` if there is a kernel for it; else return False."""


def shape_of(weight: Tensor) -> tuple[int, int]:
    """Return (out, in) of a weight, which may be packed."""
    packed: Packed | None = getattr(weight, "packed", None)
    return (weight.shape[0], weight.shape[1]) if packed is None else packed.shape


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x W^T + bias``, computed in the dtype of ``x``.

    Args:
        x: (..., in).
        weight: (out, in), frozen, of any floating dtype or packed.
        bias: (out,), frozen or trained.

    Returns:
        (..., out), with a gradient of ``x`` and of a trained bias.
    """
    trained = bias is not None and bias.requires_grad
    if torch.is_grad_enabled() and (x.requires_grad or trained):
        return _Linear.apply(x, weight, bias)
    return _linear(x, weight, bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    flat = x.reshape(-1, x.shape[-1])
    out = empty((len(flat), shape_of(weight)[0]), like=flat)
    return multiply(flat, weight, out, bias).view(*x.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.bias = None if bias is None else bias.dtype
        return _linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        dy = grads[0].reshape(-1, grads[0].shape[-1])
        d_x = d_bias = None
        if ctx.needs_input_grad[0]:
            d_x = multiply_back(dy, weight, empty((len(dy), shape_of(weight)[1]), like=dy))
            d_x = d_x.view(*grads[0].shape[:-1], -1)
        if ctx.needs_input_grad[2]:
            d_bias = dy.sum(0).to(ctx.bias)
        return d_x, None, d_bias


def multiply(x: Tensor, weight: Tensor, out: Tensor, bias: Tensor | None = None) -> Tensor:
    """Write ``x W^T + bias`` to ``out`` and return it; knows nothing of autograd.

    Args:
        x: (N, in), in the dtype of the product.
        weight: (out, in), of any floating dtype or packed.
        out: (N, out), of the dtype of ``x``.
        bias: (out,), of any floating dtype.
    """
    bias = None if bias is None else bias.to(x.dtype)
    if _is_ready(weight, x.dtype):
        return _product(x, weight, bias, out)
    if len(x) <= FEW and _multiply_few(x, weight, bias, out):
        return out
    for start, block in _blocks(weight, x.dtype):
        part = slice(start, start + len(block))
        _product(x, block, None if bias is None else bias[part], out[:, part])
    return out


def multiply_back(grad: Tensor, weight: Tensor, out: Tensor, *, add: bool = False) -> Tensor:
    """Write ``grad W`` to ``out``, or add it, and return it: the gradient of ``multiply``'s ``x``.

    Args:
        grad: (N, out).
        weight: (out, in), of any floating dtype or packed.
        out: (N, in), of the dtype of ``grad``.
        add: Whether to add to what ``out`` holds.
    """
    ready = _is_ready(weight, grad.dtype)
    for start, block in [(0, weight)] if ready else _blocks(weight, grad.dtype):
        part = grad[:, start : start + len(block)]
        if add:
            out.addmm_(part, block)
        else:
            torch.mm(part, block, out=out)
        add = True
    return out


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    if bias is None:
        return torch.mm(x, weight.T, out=out)
    return torch.addmm(bias, x, weight.T, out=out)


def _is_ready(weight: Tensor, dtype: torch.dtype) -> bool:
    return weight.dtype == dtype and not hasattr(weight, "packed")


def _blocks(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    """Yield rows of ``weight`` in ``dtype`` and where they begin; the next ones overwrite them.

    All at once in half precision, where sums over blocks would be rounded after each, and on other
    devices than the CPU.
    """
    if weight.device.type != "cpu":
        yield 0, weight.detach().to(dtype)
        return
    packed: Packed | None = getattr(weight, "packed", None)
    rows, width = shape_of(weight)
    half = dtype in (torch.bfloat16, torch.float16)
    count = rows if half else min(rows, max(1, BLOCK // width))
    for start in range(0, rows, count):
        stop = min(rows, start + count)
        if packed is not None:
            block = _scratch((stop - start) * width, torch.float32).view(-1, width)
            packed.read(start, stop, block)
            if dtype != torch.float32:
                block = _scratch(block.numel(), dtype).view(-1, width).copy_(block)
        else:
            stored = weight.detach()[start:stop]
            block = _scratch(stored.numel(), dtype)
            transposed = stored.stride(0) == 1  # as Conv1D's are
            block = block.view(width, -1).T if transposed else block.view(-1, width)
            block.copy_(stored)
        yield start, block


def _scratch(size: int, dtype: torch.dtype) -> Tensor:
    """Return this thread's memory for ``size`` numbers."""
    memory: Tensor | None = getattr(_SCRATCH, str(dtype), None)
    if memory is None or len(memory) < size:
        with torch.inference_mode(False):  # to be written to outside it, too
            memory = torch.empty(size, dtype=dtype, device="cpu")
        setattr(_SCRATCH, str(dtype), memory)
    return memory[:size]


def _multiply_few(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> bool:
    if x.dtype != torch.float32 or not (x.is_contiguous() and out.is_contiguous()):
        return False
    packed: Packed | None = getattr(weight, "packed", None)
    if packed is not None:
        return packed.multiply_few(x, bias, out)
    name, library = _KERNELS.get(weight.dtype), kernels(x, out)
    if name is None or library is None or not weight.is_contiguous():
        return False
    if type(weight) not in (Tensor, nn.Parameter):  # its memory may be elsewhere
        return False
    getattr(library, name)(*for_few(x, bias, out), address(weight))
    return True


def for_few(x: Tensor, bias: Tensor | None, out: Tensor) -> tuple[Any, ...]:
    """Return the arguments that all kernels for a few rows begin with."""
    sizes = map(ctypes.c_int64, (len(x), out.shape[1], x.shape[1]))
    return *sizes, address(x), None if bias is None else address(bias), address(out)


class StoredForward:
    """The forward of a layer that is computed in another type than it is stored in.

    Stands in the layer's ``__dict__``, so that its class, its state and its copies are as before. A
    copy of the layer has its own.

    Args:
        layer: Not kept alive by this.
        function: Of the layer and its inputs.
        dtype: In which the layer's outputs are; None if in that of its inputs.
    """

    def __init__(
        self, layer: nn.Module, function: Callable[..., Tensor], dtype: torch.dtype | None
    ) -> None:
        self.layer, self.function, self.dtype = weakref.ref(layer), function, dtype

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.function(self.layer(), *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> StoredForward:
        layer: Any = copy.deepcopy(self.layer(), memo)
        return StoredForward(layer, self.function, self.dtype)

    def __reduce__(self) -> Any:
        return StoredForward, (self.layer(), self.function, self.dtype)


def stored_forward(layer: nn.Module) -> StoredForward | None:
    """Return the forward by which ``layer`` computes in another type than it is stored in."""
    found = layer.__dict__.get("forward")
    return found if isinstance(found, StoredForward) else None


def output_dtype(layer: Any) -> torch.dtype:
    """Return the dtype of what a layer with a ``weight``, or an adapter's over one, computes.

    That is without autocast, and for inputs of its dtype.
    """
    while hasattr(layer, "base_layer"):
        layer = layer.base_layer
    found = stored_forward(layer)
    dtype: torch.dtype = layer.weight.dtype
    return dtype if found is None or found.dtype is None else found.dtype


def forward_linear(layer: Any, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return what a linear layer, or GPT-2's Conv1D, gives for ``x``, computed in ``dtype``.

    That of ``x`` if it is None; under autocast, its dtype.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
    x = x if dtype is None else x.to(dtype)
    weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.T
    if torch.compiler.is_compiling() or weight.requires_grad:
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return F.linear(x, weight.to(x.dtype), bias)
    return linear(x, weight, layer.bias)
