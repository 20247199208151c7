"""Adapted projections of the same input, such as q, k and v: computed together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from peft_lightning.adapters.lora.autograd import Projection, lora_linear

GROUPED_NAMES = (  # names of the layers that read the same input in models of transformers
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
)


class GroupableLayer(Protocol):
    """A layer whose output ``lora_linear`` can compute; see ``LoRALinear``."""

    group: ProjectionGroup | None
    in_features: int

    @property
    def path(self) -> str: ...

    def projection(self) -> Projection: ...


class ProjectionGroup:
    """Layers that read the same input: the first call computes the outputs of all of them.

    If a member is called with another input than the first one, the group dissolves itself and
    each layer computes its own output from then on.

    Args:
        layers: Two or more, in the order in which the model calls them.
    """

    def __init__(self, layers: Sequence[GroupableLayer]) -> None:
        self.layers = list(layers)
        self._input: tuple[Tensor, int, bool] | None = None
        self._outputs: dict[GroupableLayer, Tensor] = {}  # computed and not yet asked for
        for layer in self.layers:
            layer.group = self

    def output(self, layer: GroupableLayer, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the output of ``layer`` for ``x``, computed in ``dtype``."""
        if not self._is_computed(layer, x):
            if self._outputs:  # the layers do not read the same input after all
                self.dissolve()
                return lora_linear(x.to(dtype), [layer.projection()])[0]
            outputs = lora_linear(x.to(dtype), [member.projection() for member in self.layers])
            self._outputs = dict(zip(self.layers, outputs, strict=True))
            self._input = (x, _version(x), torch.is_grad_enabled())
        output = self._outputs.pop(layer)
        if not self._outputs:
            self._input = None
        return output

    def _is_computed(self, layer: GroupableLayer, x: Tensor) -> bool:
        return (
            layer in self._outputs
            and self._input is not None
            and self._input[0] is x
            and self._input[1:] == (_version(x), torch.is_grad_enabled())
        )

    def dissolve(self) -> None:
        """Let each layer compute its own output from now on."""
        for layer in self.layers:
            layer.group = None
        self._input, self._outputs = None, {}


def _version(x: Tensor) -> int:
    """Return how often ``x`` was changed in place; 0 for inference tensors, which do not count."""
    return 0 if x.is_inference() else x._version


def group_projections(layers: Mapping[str, GroupableLayer]) -> None:
    """Group the adapted layers that usually read the same input.

    Args:
        layers: The adapted layers by name.
    """
    siblings: dict[str, dict[str, GroupableLayer]] = {}
    for name, layer in layers.items():
        parent, _, leaf = name.rpartition(".")
        siblings.setdefault(parent, {})[leaf] = layer
    for children in siblings.values():
        for names in GROUPED_NAMES:
            members = [children[name] for name in names if name in children]
            if len({layer.in_features for layer in members}) > 1:
                continue  # such as RWKV's feed-forward
            if len(members) > 1 and all(layer.path == "fused" for layer in members):
                ProjectionGroup(members)
