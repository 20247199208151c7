"""Tensors of a LoRA's file, ours or HF PEFT's, prepared for the model that they are loaded into."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from peft_lightning.adapters.lora.embedding import LoRAEmbedding
from peft_lightning.adapters.lora.extra_modules import resize_saved_embeddings
from peft_lightning.adapters.lora.init import is_decomposition
from peft_lightning.adapters.lora.layers import LoRALinear
from peft_lightning.adapters.lora.pissa import append_initial_update, is_residual
from peft_lightning.adapters.lora.state_dict_keys import (
    base_weight_key,
    check_base_weight,
    factor_keys,
)
from peft_lightning.messages import UserError

_MOST_CUT = 16  # times that the rank of a decomposition may exceed what there is to decompose


def prepare_to_load(
    model: nn.Module, tensors: Mapping[str, Tensor], init: bool | str
) -> dict[str, Tensor]:
    """Return a file's tensors as the attached LoRA of ``model`` has them.

    Base weights that the file repeats are left out, and initial updates that HF PEFT does not save
    are appended. Embeddings that are trained whole are resized to the file's number of rows.

    Args:
        model: A model with a LoRA.
        tensors: The file's tensors.
        init: The LoRA's ``init_lora_weights``.

    Raises:
        UserError: If a repeated base weight is not the model's.
    """
    resize_saved_embeddings(model, tensors)
    found = dict(tensors)
    for name, layer in model.named_modules():
        if not isinstance(layer, LoRALinear | LoRAEmbedding):
            continue
        key = base_weight_key(name)
        keys = a, b = factor_keys(name)
        check_repeated(key, found.pop(key, None), found.get(a), layer, layer.weight, init)
        if isinstance(layer, LoRALinear) and a in found and b in found:
            factors = append_initial_update(found[a], found[b], layer, layer.weight, init)
            found |= dict(zip(keys, factors, strict=True))
    return found


def check_repeated(
    key: str, repeated: Tensor | None, a: Tensor | None, layer: nn.Module, weight: Tensor, init: Any
) -> None:
    """Compare a base weight that the file repeats with the model's, or what HF PEFT made of it.

    Args:
        key: The weight's key in the file.
        repeated: The file's weight; None if the file does not repeat it.
        a: The layer's ``lora_A`` in the file.
        layer: The adapted layer.
        weight: The model's weight.
        init: The LoRA's ``init_lora_weights``.

    Raises:
        UserError: If it is neither.
    """
    if (
        repeated is None
        or a is None
        or not isinstance(layer, LoRALinear)
        or not is_residual(repeated, a, layer, weight, init)
    ):
        check_base_weight(key, repeated, weight)


def check_rank(rank: int, tensors: Mapping[str, Tensor], init: bool | str) -> None:
    """Raise UserError if a config asks for a larger rank than that of the file's tensors.

    Checked before memory for tensors of that rank is allocated.

    Args:
        rank: The largest rank that the config gives to a layer.
        tensors: The file's tensors.
        init: The LoRA's ``init_lora_weights``. HF PEFT's decompositions have no more rows than the
            smaller side of a weight, whatever the rank.
    """
    ends = (".lora_A.weight", ".lora_embedding_A")  # shape (rank, in)
    stored = [len(t) for name, t in tensors.items() if name.endswith(ends) and t.ndim]
    if stored and rank > max(stored) * (_MOST_CUT if is_decomposition(init) else 1):
        raise UserError(
            f"the config asks for rank {rank}, and the file's tensors have at most {max(stored)}"
        )
