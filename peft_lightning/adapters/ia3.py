"""IA3: vectors that scale keys, values and the inner activations of MLPs (arXiv:2205.05638)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_lightning.adapters.hooked_layers import HookedAdapter
from peft_lightning.adapters.lora.layers import features, is_conv1d
from peft_lightning.adapters.lora.name_matching import matches
from peft_lightning.adapters.lora.targets import Targets
from peft_lightning.messages import UserError

_DEFAULT = {  # model type -> scaled at the output, scaled at the input; HF PEFT's
    **dict.fromkeys(("llama", "mistral"), (["k_proj", "v_proj"], ["down_proj"])),
    **dict.fromkeys(
        ("llama4", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"),
        (["q_proj", "v_proj"], ["down_proj"]),
    ),
    "phi": (["q_proj", "v_proj"], ["fc2"]),
    "opt": (["q_proj", "k_proj"], ["fc2"]),
    "gptj": (["q_proj", "v_proj"], ["fc_out"]),
    "gpt_neo": (["q_proj", "v_proj"], ["c_proj"]),
    "mixtral": (["k_proj", "v_proj"], ["w2"]),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), (["c_attn"], ["mlp.c_proj"])),
    **dict.fromkeys(("gpt_neox", "falcon"), (["query_key_value"], ["dense_4h_to_h"])),
    "bloom": (["query_key_value"], ["mlp.dense_4h_to_h"]),
}


@dataclass(frozen=True)
class IA3(HookedAdapter):
    """Scales the outputs of some linear layers and the inputs of others by vectors from 1 on.

    ``y = l * (W x + b)``, or ``y = W (l * x) + b`` for ``feedforward_modules`` (Liu et al. 2022,
    section 3.3): as few numbers as a layer is wide. It starts as the base.

    Args:
        target_modules: Layers to act on, as for a LoRA; None for HF PEFT's default of the
            architecture, which are keys, values and the last layer of the MLP.
        feedforward_modules: Those of them whose inputs are scaled: a list of names or ends of
            names, or a regular expression. None for HF PEFT's default of the architecture.
        exclude_modules: Layers to leave out, likewise.

    Raises:
        UserError: If a value is out of its range; from ``attach``, if the architecture has no
            default, or a module of ``feedforward_modules`` is not among the targets.
    """

    peft_type: ClassVar[str] = "IA3"
    key: ClassVar[str] = "ia3_l"
    takes_conv1d: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 5e-3
    hf_defaults: ClassVar[dict[str, Any]] = {
        **dict.fromkeys(["exclude_modules", "feedforward_modules", "modules_to_save"]),
        **{"fan_in_fan_out": False, "init_ia3_weights": True, "target_modules": None},
    }
    hf_ignored: ClassVar[frozenset[str]] = HookedAdapter.hf_ignored | {
        "fan_in_fan_out",
        "init_ia3_weights",
    }

    target_modules: list[str] | str | None = None
    feedforward_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None

    def __post_init__(self) -> None:
        targets, inner = self.target_modules, self.feedforward_modules
        if inner is not None and targets is None:
            raise UserError("feedforward_modules are some of target_modules: give these too")
        if isinstance(targets, list) and isinstance(inner, list):
            self._require(set(inner) <= set(targets), "feedforward_modules", f"some of {targets}")
        Targets(targets, self.exclude_modules)

    def for_model(self, model: nn.Module) -> tuple[list[str] | str, list[str] | str]:
        """Return the targets and those of them that are scaled at their inputs, for ``model``.

        Raises:
            UserError: If there is no default for its architecture.
        """
        if self.target_modules is not None:
            return self.target_modules, self.feedforward_modules or []
        kind = getattr(getattr(model, "config", None), "model_type", None)
        if kind not in _DEFAULT:
            raise UserError(
                f"IA3 has no default target_modules for a {kind} model: give target_modules, and "
                "in feedforward_modules those of them in the MLP"
            )
        outputs, inputs = _DEFAULT[kind]
        return [*outputs, *inputs], inputs

    def targets(self, model: nn.Module) -> Targets:
        return Targets(self.for_model(model)[0], self.exclude_modules)

    def new_tensor(self, model: nn.Module, name: str, dtype: torch.dtype) -> Tensor:
        inputs, outputs = features(model.get_submodule(name))
        is_inner = _matches(self.for_model(model)[1], name)
        return torch.ones((1, inputs) if is_inner else (outputs, 1), dtype=dtype)

    def changed_input(self, layer: Any, x: Tensor) -> Tensor:
        return x if self._scales_output(layer) else self._scaled(layer, x)

    def changed_output(self, layer: Any, x: Tensor, y: Tensor) -> Tensor:
        return self._scaled(layer, y) if self._scales_output(layer) else y

    def _scales_output(self, layer: Any) -> bool:
        return self.tensor(layer).shape[1] == 1

    def _scaled(self, layer: Any, x: Tensor) -> Tensor:
        # in the vector's precision: near 1 a bfloat16 has steps of 1/128
        return (x * self.tensor(layer).flatten()).to(x.dtype)

    def hf_config(self, model: nn.Module) -> dict[str, Any]:
        inner = self.for_model(model)[1]
        config = super().hf_config(model)
        targets = config["target_modules"]
        if isinstance(targets, list) and not (isinstance(inner, list) and {*inner} <= {*targets}):
            layers = self.layers(model)  # HF PEFT wants the one list to be part of the other
            config["target_modules"] = list(layers)
            inner = [name for name in layers if _matches(inner, name)]
        return {**config, "feedforward_modules": inner}

    def merged_parameters(self, model: nn.Module) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, layer in self.layers(model).items():
            vector = self.tensor(layer)
            wide = torch.promote_types(layer.weight.dtype, torch.float32)
            of_weight = vector.T if is_conv1d(layer) else vector
            found[f"{name}.weight"] = layer.weight.to(wide) * of_weight.to(wide)
            if layer.bias is not None and self._scales_output(layer):
                found[f"{name}.bias"] = layer.bias.to(wide) * vector[:, 0].to(wide)
        return found


def _matches(wanted: list[str] | str, name: str) -> bool:
    return wanted != [] and matches(wanted, name)
