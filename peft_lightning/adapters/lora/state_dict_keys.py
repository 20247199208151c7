"""The keys of LoRA's tensors in HF PEFT's file ``adapter_model.safetensors``."""

from __future__ import annotations

import torch
from torch import Tensor

from peft_lightning.adapters.state_dict import PREFIX
from peft_lightning.messages import UserError

LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"  # ends of the keys, after the layer's name


def factor_keys(layer: str) -> tuple[str, str]:
    """Return the keys of ``A``, (r, in_features), and ``B``, (out_features, r), of a layer."""
    return f"{PREFIX}{layer}{LORA_A}", f"{PREFIX}{layer}{LORA_B}"


def base_weight_key(layer: str) -> str:
    """Return the key under which HF PEFT repeats the weight of an adapted embedding's base."""
    return f"{PREFIX}{layer}.base_layer.weight"


def check_base_weight(key: str, repeated: Tensor | None, weight: Tensor) -> None:
    """Compare a base weight that the file repeats with the model's.

    Args:
        key: The weight's key in the file.
        repeated: The file's weight; None if the file does not repeat it.
        weight: The model's.

    Raises:
        UserError: If they differ.
    """
    if repeated is None or torch.equal(repeated.to(weight), weight):
        return
    if len(repeated) != len(weight):
        raise UserError(
            f"the file brings its own base weight, {key}, with {len(repeated)} rows, and this "
            f"model has {len(weight)}: give the base that the adapter was trained on, resized as "
            f"there, resize_token_embeddings({len(repeated)})"
        )
    raise UserError(
        f"the file brings its own base weight, {key}, and it is not this model's: load the base "
        "that the adapter was trained on"
    )
