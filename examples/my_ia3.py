"""An adapter of one's own: IA3 (arXiv:2205.05638), in a file outside of the package.

A config names it by class path: ``examples.my_ia3.IA3``. Commands that read what it has trained get
it as an option: ``python -m peft_lightning generate --adapter_class examples.my_ia3.IA3 ...``.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_lightning.adapters import Adapter, Targets, adapter_dtype


def scale(layer: nn.Module, inputs: tuple[Tensor], output: Tensor | None = None) -> Tensor:
    x = inputs[0] if output is None else output
    return (x * layer.ia3_l.flatten()).to(x.dtype)  # near 1 a bfloat16 has steps of 1/128


@dataclass(frozen=True)
class IA3(Adapter):
    """Scales keys, values and the inner activations of MLPs by vectors that start at 1.

    Args:
        target_modules: Names of linear layers.
        feedforward_modules: Those of them whose inputs are scaled, not their outputs.
    """

    peft_type: ClassVar[str] = "IA3"
    learning_rate: ClassVar[float] = 1e-2
    hf_defaults: ClassVar[dict[str, Any]] = {
        **dict.fromkeys(["exclude_modules", "modules_to_save", "target_modules"]),
        **{"fan_in_fan_out": False, "feedforward_modules": [], "init_ia3_weights": True},
    }
    target_modules: list[str] = field(default_factory=lambda: ["k_proj", "v_proj", "down_proj"])
    feedforward_modules: list[str] = field(default_factory=lambda: ["down_proj"])

    def layers(self, model: nn.Module) -> dict[str, Any]:
        return Targets(self.target_modules).find(model)

    def _insert(self, model: nn.Module, initialise: bool) -> None:
        model.requires_grad_(False)
        for name, layer in self.layers(model).items():
            of_inputs = name.split(".")[-1] in self.feedforward_modules
            shape = (1, layer.in_features) if of_inputs else (layer.out_features, 1)
            vector = layer.weight.new_ones(shape, dtype=adapter_dtype(layer.weight.dtype))
            layer.ia3_l = nn.Parameter(vector if initialise else torch.zeros_like(vector))
            hook = layer.register_forward_pre_hook if of_inputs else layer.register_forward_hook
            layer.ia3_hook = hook(scale)

    def _remove(self, model: nn.Module) -> None:
        for layer in self.layers(model).values():
            layer.ia3_hook.remove()
            del layer.ia3_l, layer.ia3_hook

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        return {f"base_model.model.{n}.ia3_l": x.ia3_l for n, x in self.layers(model).items()}

    def merged_parameters(self, model: nn.Module) -> dict[str, Tensor]:
        layers = self.layers(model).items()
        weights = {f"{n}.weight": x.weight * x.ia3_l for n, x in layers}
        biased = [(n, x) for n, x in layers if x.bias is not None and x.ia3_l.shape[1] == 1]
        return weights | {f"{n}.bias": x.bias * x.ia3_l[:, 0] for n, x in biased}
