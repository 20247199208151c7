"""OLoRA and PiSSA in files: the initial update that a layer subtracts, here and in HF PEFT.

Here the base's weight ``W`` stays as it is, and ``W + s (B A - B0 A0)`` is saved as plain LoRA of
twice the rank, ``A`` over ``A0`` and ``B`` beside ``-B0``, which every program can load. HF PEFT
overwrites ``W`` by ``W - s B0 A0``, saves ``A`` and ``B`` alone, and decomposes the base again
each time it loads the adapter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peft_lightning.adapters.base import plain_number
from peft_lightning.adapters.lora.init import decompose, is_decomposition, with_zeros
from peft_lightning.adapters.lora.layers import LoRALinear, is_conv1d
from peft_lightning.messages import UserError


def with_doubled_rank(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of plain LoRA with twice the rank and the same ``scaling`` per layer."""
    factor = math.sqrt(2) if options["use_rslora"] else 2
    return {
        **options,
        "alpha_pattern": {k: plain_number(v * factor) for k, v in options["alpha_pattern"].items()},
        "init_lora_weights": True,
        "lora_alpha": plain_number(options["lora_alpha"] * factor),
        "r": options["r"] * 2,
        "rank_pattern": {k: r * 2 for k, r in options["rank_pattern"].items()},
    }


def is_residual(repeated: Tensor, a: Tensor, layer: LoRALinear, weight: Tensor, init: Any) -> bool:
    """Whether a base weight in a file is what HF PEFT made of the model's: ``W - s B0 A0``.

    It writes that of an adapted output embedding.

    Args:
        repeated: The file's weight.
        a: As for ``append_initial_update``, with the next three.
        layer: The layer.
        weight: The model's weight.
        init: ``init_lora_weights``.
    """
    if not is_decomposition(init) or len(a) != layer.r or repeated.shape != weight.shape:
        return False
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    initial_a, initial_b = decompose(wide, layer.r, layer.scaling, str(init))
    expected = wide - layer.scaling * initial_b @ initial_a
    # each rounded to 8 bits or more, and another base's differs by as much as its own size
    return bool((repeated.to(wide) - expected).norm() <= 2**-6 * wide.norm())


def append_initial_update(
    a: Tensor, b: Tensor, layer: LoRALinear, weight: Tensor, init: bool | str
) -> tuple[Tensor, Tensor]:
    """Return the factors of the whole update, the subtracted initial one appended if it is missing.

    Args:
        a: (rank, in) as HF PEFT writes it, or (2 rank, in) as it is written here.
        b: (out, rank) or (out, 2 rank).
        layer: The layer with this update.
        weight: The weight of its base layer, in the base's own layout.
        init: ``init_lora_weights``; nothing is appended unless it is ``olora`` or ``pissa``.

    Raises:
        UserError: For OLoRA of HF PEFT over a Conv1D, whose base it damages.
    """
    if is_decomposition(init) and a.shape[0] == min(layer.r, *weight.shape):
        a, b = with_zeros(a, b, layer.r)
    if not is_decomposition(init) or a.shape[0] != layer.r:
        return a, b
    transposed = is_conv1d(layer.base_layer)
    if init == "olora" and transposed:
        raise UserError(
            "init_lora_weights 'olora' over a Conv1D: HF PEFT takes its weight for the transposed "
            "one, and subtracts what is not the initial update: train it again, or with pissa"
        )
    matrix = weight.T if transposed else weight
    initial_a, initial_b = decompose(matrix, layer.r, layer.scaling, str(init))
    return torch.cat([a, initial_a.to(a)]), torch.cat([b, -initial_b.to(b)], 1)
