"""Adapted layers that read the same input, such as q, k and v: computed together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from peft_lightning.adapters.lora.autograd import lora_linear
from peft_lightning.adapters.lora.layers import LoRALinear

SHARED_INPUTS = (  # names of layers that read the same input in models of transformers
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
)


class SharedInput:
    """Layers that read the same input: the first one called computes the results of all.

    Args:
        layers: Two or more, in the order in which they are called.
    """

    def __init__(self, layers: Sequence[LoRALinear]) -> None:
        self.layers = list(layers)
        self._input: tuple[Tensor, int, bool] | None = None
        self._waiting: dict[LoRALinear, Tensor] = {}
        for layer in self.layers:
            layer.shared_input = self

    def result(self, layer: LoRALinear, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the output of ``layer`` for ``x``, computed in ``dtype``."""
        if not self._is_for(layer, x):
            if self._waiting:  # they do not read the same input after all
                self.dissolve()
                return lora_linear(x.to(dtype), [layer.projection()])[0]
            found = lora_linear(x.to(dtype), [member.projection() for member in self.layers])
            self._waiting = dict(zip(self.layers, found, strict=True))
            self._input = (x, _version(x), torch.is_grad_enabled())
        result = self._waiting.pop(layer)
        if not self._waiting:
            self._input = None
        return result

    def _is_for(self, layer: LoRALinear, x: Tensor) -> bool:
        return (
            layer in self._waiting
            and self._input is not None
            and self._input[0] is x
            and self._input[1:] == (_version(x), torch.is_grad_enabled())
        )

    def dissolve(self) -> None:
        """Let each layer compute its own output from now on."""
        for layer in self.layers:
            layer.shared_input = None
        self._input, self._waiting = None, {}


def _version(x: Tensor) -> int:
    """Return how often ``x`` was changed in place; inference tensors do not count."""
    return 0 if x.is_inference() else x._version


def group_by_input(model: nn.Module) -> None:
    """Let the adapted layers that usually share an input be computed together."""
    for module in model.modules():
        for names in SHARED_INPUTS:
            layers = [getattr(module, name, None) for name in names]
            found = [layer for layer in layers if isinstance(layer, LoRALinear)]
            if len(found) > 1 and all(layer.path == "fused" for layer in found):
                SharedInput(found)
