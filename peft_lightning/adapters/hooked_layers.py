"""What methods share that put a trained tensor on linear layers and hook its effect to them."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peft_lightning.adapters.base import Adapter, adapter_dtype
from peft_lightning.adapters.lora.layers import is_conv1d, is_linear
from peft_lightning.adapters.lora.reached_layers import (
    count_kinds,
    forget_unreached,
    note_unreached,
)
from peft_lightning.adapters.lora.targets import Targets, adaptable_layers
from peft_lightning.adapters.lora.trainable_tokens import vocabulary_names
from peft_lightning.adapters.state_dict import PREFIX
from peft_lightning.messages import UserError

_HANDLES, _DROPOUT = "_hooks_of_adapter", "adapter_dropout"  # attributes of an adapted layer


class HookedAdapter(Adapter):
    """The base class of methods that change what goes into linear layers, or comes out of them.

    A layer stays the module that it is, quantised or not, and gets one trained tensor as a
    parameter. A subclass says in ``key`` under which name within the layer a file has it.
    """

    key: ClassVar[str]
    takes_conv1d: ClassVar[bool] = False  # whether HF PEFT has it for GPT-2's Conv1D

    def targets(self, model: nn.Module) -> Targets:
        """Return the choice of layers of ``model``, by the adapter's fields of these names."""
        names = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
        return Targets(*(getattr(self, name) for name in names))

    @abstractmethod
    def new_tensor(self, model: nn.Module, name: str, dtype: torch.dtype) -> Tensor:
        """Return the tensor with which the layer called ``name`` starts, on the CPU.

        Raises:
            UserError: If the method does not suit the layer.
        """

    def new_dropout(self) -> nn.Module | None:
        """Return what a layer's ``dropped`` applies in training; None for nothing."""
        return None

    def dropped(self, layer: Any, tensor: Tensor) -> Tensor:
        """Return ``tensor`` after the layer's dropout, if it has one and is trained."""
        dropout = getattr(layer, _DROPOUT, None)
        return tensor if dropout is None else dropout(tensor)

    def changed_input(self, layer: Any, x: Tensor) -> Tensor:
        """Return what goes into an adapted layer instead of ``x``, (..., in_features)."""
        return x

    def changed_output(self, layer: Any, x: Tensor, y: Tensor) -> Tensor:
        """Return what an adapted layer gives for ``x`` instead of ``y``, (..., out_features)."""
        return y

    def layers(self, model: nn.Module) -> dict[str, Any]:
        """Return the adapted layers of ``model`` by name."""
        return {name: layer for name, layer in model.named_modules() if hasattr(layer, _HANDLES)}

    def count_layers(self, model: nn.Module) -> str | None:
        """Return how many layers of each kind are adapted and how many are not, and why."""
        linear = {name: m for name, m in adaptable_layers(model).items() if is_linear(m)}
        linear.pop(vocabulary_names(model)[1] or "", None)
        return count_kinds(model, list(self.layers(model)), linear)

    def _insert(self, model: nn.Module, initialise: bool) -> None:
        if initialise:
            note_unreached(model, adaptable_layers(model))
        try:
            found = self.targets(model).find(model)
            made = {name: self._tensor(model, name, initialise) for name in found}
        except Exception:
            forget_unreached(model)
            raise
        model.requires_grad_(False)
        for name, layer in found.items():
            device = next(layer.parameters()).device
            layer.register_parameter(self._attribute, nn.Parameter(made[name].to(device)))
            if (dropout := self.new_dropout()) is not None:
                setattr(layer, _DROPOUT, dropout)
            setattr(layer, _HANDLES, self._hooked(layer))

    def _tensor(self, model: nn.Module, name: str, initialise: bool) -> Tensor:
        layer = model.get_submodule(name)
        if not is_linear(layer):
            raise UserError(
                f"target_modules: {name} is no linear layer, and {type(self).__name__} acts on "
                "linear layers alone; a LoRA acts on embeddings too"
            )
        if is_conv1d(layer) and not self.takes_conv1d:
            raise UserError(
                f"target_modules: {name} is a Conv1D, for which HF PEFT has no "
                f"{type(self).__name__}: train a LoRA"
            )
        weight: Any = layer.weight
        tensor = self.new_tensor(model, name, adapter_dtype(weight.dtype))
        return tensor if initialise else torch.zeros_like(tensor)

    def _hooked(self, layer: nn.Module) -> list[RemovableHandle]:
        handles = []
        if type(self).changed_input is not HookedAdapter.changed_input:
            handles.append(layer.register_forward_pre_hook(partial(_before, self)))
        if type(self).changed_output is not HookedAdapter.changed_output:
            handles.append(layer.register_forward_hook(partial(_after, self)))
        return handles

    def _remove(self, model: nn.Module) -> None:
        for layer in self.layers(model).values():
            for handle in getattr(layer, _HANDLES):
                handle.remove()
            delattr(layer, _HANDLES)
            delattr(layer, self._attribute)
            if hasattr(layer, _DROPOUT):
                delattr(layer, _DROPOUT)
        forget_unreached(model)

    @property
    def _attribute(self) -> str:
        return self.key.partition(".")[0]

    def tensor(self, layer: nn.Module) -> Tensor:
        """Return the trained tensor of an adapted layer."""
        found: Tensor = getattr(layer, self._attribute)
        return found

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        layers = self.layers(model).items()
        return {f"{PREFIX}{name}.{self.key}": self.tensor(layer) for name, layer in layers}

    def hf_config(self, model: nn.Module) -> dict[str, Any]:
        named = self.targets(model).resolved_names(model)
        transposed = any(map(is_conv1d, self.layers(model).values()))
        of_model: dict[str, Any] = {"target_modules": named}
        if "fan_in_fan_out" in self.hf_defaults:
            of_model["fan_in_fan_out"] = transposed
        return {**super().hf_config(model), **of_model}


def _before(adapter: HookedAdapter, layer: nn.Module, args: tuple[Any, ...]) -> Any:
    return (adapter.changed_input(layer, args[0]), *args[1:])


def _after(adapter: HookedAdapter, layer: nn.Module, args: Any, output: Tensor) -> Tensor:
    return adapter.changed_output(layer, args[0], output)
