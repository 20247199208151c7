"""OLoRA and PiSSA in files: the initial update that a layer subtracts, and how HF PEFT has it.

Here the base's weight ``W`` stays, and ``W + s (B A - B0 A0)`` is saved as plain LoRA of twice the
rank, ``A`` over ``A0`` and ``B`` beside ``-B0``, which any reader takes. HF PEFT overwrites ``W``
by ``W - s B0 A0``, saves ``A`` and ``B`` alone, and decomposes the base again at each reading.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peft_lightning.adapters.base import plain_number
from peft_lightning.adapters.lora.init import decompose, is_decomposition
from peft_lightning.adapters.lora.layers import LoRALinear, is_conv1d


def doubled(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a LoRA's options as those of plain LoRA of twice the rank and the same scales."""
    factor = math.sqrt(2) if options["use_rslora"] else 2
    return {
        **options,
        "alpha_pattern": {k: plain_number(v * factor) for k, v in options["alpha_pattern"].items()},
        "init_lora_weights": True,
        "lora_alpha": plain_number(options["lora_alpha"] * factor),
        "r": options["r"] * 2,
        "rank_pattern": {k: r * 2 for k, r in options["rank_pattern"].items()},
    }


def without_start(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config of HF PEFT without what only decides how training started.

    Raises:
        ValueError: If it started from random numbers that HF PEFT subtracts from the base and
            does not save.
    """
    init = config.get("init_lora_weights", True)
    if isinstance(init, str):
        init = init.lower()  # HF PEFT takes Gaussian and OLoRA too
        config = {**config, "init_lora_weights": init}
    if init == "eva":  # data decided on ranks and A: what is saved is plain LoRA
        return {**config, "init_lora_weights": True, "eva_config": None}
    if is_decomposition(init) and "niter" in init:
        raise ValueError(
            f"init_lora_weights {init!r} has subtracted from the base what HF PEFT drew at random "
            "and did not save: save the adapter by HF PEFT as plain LoRA, with "
            "path_initial_model_for_weight_conversion"
        )
    return dict(config)


def complete(
    a: Tensor, b: Tensor, layer: LoRALinear, weight: Tensor, init: bool | str
) -> tuple[Tensor, Tensor]:
    """Return the factors of the whole update: what ``init`` subtracts is appended if it lacks.

    Args:
        a: (rank, in) as HF PEFT writes it, or (2 rank, in) as it is written here.
        b: (out, rank) or (out, 2 rank).
        layer: Whose update it is.
        weight: That of its base, as the base has it.
        init: How training started; nothing is appended unless it is ``olora`` or ``pissa``.

    Raises:
        ValueError: For OLoRA of HF PEFT over a Conv1D, whose base it damages.
    """
    if not is_decomposition(init) or a.shape[0] != layer.r:
        return a, b
    transposed = is_conv1d(layer.base_layer)
    if init == "olora" and transposed:
        raise ValueError(
            "init_lora_weights 'olora' over a Conv1D: HF PEFT takes its weight for the transposed "
            "one, and subtracts what is not the initial update: train it again, or with pissa"
        )
    matrix = weight.T if transposed else weight
    initial_a, initial_b = decompose(matrix, layer.r, layer.scaling, str(init))
    return torch.cat([a, initial_a.to(a)]), torch.cat([b, -initial_b.to(b)], 1)
