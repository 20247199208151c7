"""Biases of the base that are trained extra LoRA: HF PEFT's option ``bias``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from peft_lightning.adapters.lora.modules_to_save import is_within
from peft_lightning.messages import UserError

BIAS_CHOICES = ("none", "all", "lora_only")


def biases_to_train(
    model: nn.Module, choice: str, layers: Mapping[str, nn.Module], without: Iterable[str]
) -> list[str]:
    """Return the names of the biases to train.

    Args:
        model: A model without an adapter.
        choice: ``all`` for every bias of the model, ``lora_only`` for those of ``layers``, or
            ``none``.
        layers: The layers to adapt, by name.
        without: Names of modules that are trained whole and have their biases there.
    """
    if choice == "none":
        return []
    if choice == "all":
        named = [name for name, _ in model.named_parameters() if name.endswith(".bias")]
        return [name for name in named if not is_within(name, without)]
    biased = (name for name, layer in layers.items() if getattr(layer, "bias", None) is not None)
    return [f"{name}.bias" for name in biased]


def check_biases(model: nn.Module, choice: str, names: Iterable[str]) -> None:
    """Raise UserError if there are no biases ``names``, or their dtype is too narrow to train."""
    found = {model.get_parameter(name).dtype for name in names}
    if choice != "none" and not found:
        raise UserError(f"bias {choice!r} trains nothing: there is no bias to train in this model")
    if half := found & {torch.bfloat16, torch.float16}:
        raise UserError(
            f"bias {choice!r} trains biases of the base in its dtype, {half.pop()}, which rounds "
            "small steps away: load the base in float32"
        )


def make_biases_trainable(model: nn.Module, names: Iterable[str]) -> None:
    """Replace each bias by a trainable copy of the same dtype, as HF PEFT does."""
    for name in names:
        module = model.get_submodule(name.removesuffix(".bias"))
        bias: Tensor = module.bias  # type: ignore[assignment]
        module.register_buffer("frozen_bias", bias.detach(), persistent=False)
        module.bias = nn.Parameter(bias.detach().clone())


def trained_biases(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained biases by name."""
    owners = {n: m for n, m in model.named_modules() if hasattr(m, "frozen_bias")}
    return {f"{name}.bias": module.bias for name, module in owners.items()}


def restore_biases(model: nn.Module) -> None:
    """Put the base's own biases back."""
    for module in model.modules():
        if hasattr(module, "frozen_bias"):
            frozen: Tensor = module.frozen_bias  # type: ignore[assignment]
            module.bias = nn.Parameter(frozen, requires_grad=False)
            del module.frozen_bias
