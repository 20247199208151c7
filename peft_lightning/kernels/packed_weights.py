"""Weights of 4 and 8 bits as bitsandbytes stores them, multiplied on a CPU without it.

Its own products there make a whole layer's numbers anew each time, in memory of their own, are not
part of a fused LoRA, and (8 bits) round the inputs.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from peft_lightning.kernels.native.library import address, kernels
from peft_lightning.kernels.native.stored import Packed, StoredForward, for_few, forward_linear

_CONSTANT = 256  # numbers that share a scale of scales


class FourBits(Packed):
    """Two numbers to a byte: places in a table of 16, scaled block by block (NF4, FP4).

    Args:
        weight: (out * in / 2,) bytes; the first number of two is the higher half.
        state: bitsandbytes' ``QuantState`` of it.
    """

    def __init__(self, weight: Tensor, state: Any) -> None:
        super().__init__(tuple(state.shape))
        self.weight = weight.detach().view(torch.uint8).reshape(-1)
        self.block = int(state.blocksize)
        self.code = state.code.float().contiguous()
        self.scales, self.nested = state.absmax, state.state2 if state.nested else None
        self.offset = float(state.offset) if state.nested else 0.0

    def read(self, start: int, stop: int, to: Tensor) -> None:
        if (library := kernels(to)) is not None:
            rows = map(ctypes.c_int64, (start, stop, self.shape[1]))
            library.expanded_4bit(*rows, address(to), *self._arguments())
            return
        first, last = (row * self.shape[1] for row in (start, stop))
        numbers = self._pairs()[self.weight[first // 2 : last // 2].int()].view(-1, self.block)
        scales = self._scales(first // self.block, last // self.block)
        torch.mul(numbers, scales[:, None], out=to.view(-1, self.block))

    def multiply_few(self, x: Tensor, bias: Tensor | None, out: Tensor) -> bool:
        if (library := kernels(x, out)) is None:
            return False
        library.few_4bit(*for_few(x, bias, out), *self._arguments())
        return True

    def _pairs(self) -> Tensor:
        """Return the two numbers of each byte, (256, 2)."""
        return torch.stack([self.code.repeat_interleave(16), self.code.repeat(16)], 1)

    def _scales(self, start: int, stop: int) -> Tensor:
        """Return the scales of blocks, (stop - start,)."""
        if self.nested is None:
            return self.scales[start:stop]
        own = self.nested.code[self.scales[start:stop].int()]
        outer = self.nested.absmax[torch.arange(start, stop) // _CONSTANT]
        return own * outer + self.offset

    def _arguments(self) -> tuple[Any, ...]:
        first = address(self.weight), address(self.code), ctypes.c_int64(self.block)
        if self.nested is None:
            return *first, address(self.scales), None, None, None, ctypes.c_float(0)
        tensors = self.scales, self.nested.code, self.nested.absmax
        return *first, None, *map(address, tensors), ctypes.c_float(self.offset)


class EightBits(Packed):
    """Whole numbers from -127 to 127, scaled row by row (LLM.int8()).

    Args:
        weight: (out, in) int8.
        largest: (out,) float32, the absolute value that 127 stands for.
    """

    def __init__(self, weight: Tensor, largest: Tensor) -> None:
        super().__init__((weight.shape[0], weight.shape[1]))
        self.weight, self.largest = weight.detach(), largest.float().contiguous()

    def read(self, start: int, stop: int, to: Tensor) -> None:
        if (library := kernels(to)) is not None:
            rows = map(ctypes.c_int64, (start, stop, self.shape[1]))
            library.expanded_8bit(*rows, address(to), address(self.weight), address(self.largest))
            return
        to.copy_(self.weight[start:stop]).mul_(self.largest[start:stop, None] / 127)

    def multiply_few(self, x: Tensor, bias: Tensor | None, out: Tensor) -> bool:
        if (library := kernels(x, out)) is None:
            return False
        arguments = *for_few(x, bias, out), address(self.weight), address(self.largest)
        library.few_8bit(*arguments)
        return True


def multiply_packed(model: nn.Module) -> int:
    """Let quantised layers on a CPU multiply their numbers in the dtype of their inputs.

    What autograd keeps of a layer is the packed weight. Inputs are not rounded.

    Args:
        model: Its weights have to stay where they are: one that is moved to a GPU, or copied, is
            multiplied by bitsandbytes again.

    Returns:
        How many layers do.
    """
    count = 0
    for layer in model.modules():
        if (packed := _packed(layer)) is not None:
            layer.weight.packed = packed  # type: ignore[union-attr]
            layer.forward = StoredForward(layer, _forward, None)
            count += 1
    return count


def _packed(layer: Any) -> Packed | None:
    weight = getattr(layer, "weight", None)
    if not isinstance(layer, nn.Linear) or weight is None or weight.device.type != "cpu":
        return None
    state, largest = getattr(weight, "quant_state", None), getattr(weight, "SCB", None)
    if state is not None and not getattr(state, "packing_format_for_cpu", False):
        inner = 0 if not state.nested else state.state2.blocksize - _CONSTANT
        whole = state.shape[1] % state.blocksize == 0 and state.shape[0] == layer.out_features
        return FourBits(weight, state) if whole and inner == 0 else None
    if largest is not None and weight.dtype == torch.int8:
        return EightBits(weight, largest)
    return None


def _forward(layer: Any, x: Tensor) -> Tensor:
    if not hasattr(layer.weight, "packed"):  # moved or copied
        return type(layer).forward(layer, x)
    return forward_linear(layer, x)
