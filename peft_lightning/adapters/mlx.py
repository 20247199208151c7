"""Adapters of MLX (mlx-lm), read as HF PEFT's: ``y = W x + scale * lora_b^T lora_a^T x``.

Source: mlx-lm, ``tuner/lora.py`` and ``tuner/dora.py``, whose matrices are the transposes of HF
PEFT's: ``lora_a`` (in_features, rank), ``lora_b`` (rank, out_features), DoRA's ``m``
(out_features,). ``scale`` is the whole factor, not divided by the rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from peft_lightning.messages import UserError, shortened

MLX_FILE = "adapters.safetensors"
_PARTS = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}
_FUSE = "merge it where it was trained, python -m mlx_lm fuse, and give the result as the base"


def is_mlx(config: Mapping[str, Any]) -> bool:
    """Whether an ``adapter_config.json`` with this content is MLX's."""
    return "peft_type" not in config and ("lora_parameters" in config or "lora_layers" in config)


def hf_config(config: Mapping[str, Any], names: Iterable[str], folder: Path) -> dict[str, Any]:
    """Return HF PEFT's config for an adapter of MLX.

    Args:
        config: MLX's.
        names: Of the tensors in MLX's file.
        folder: The adapter's, for an error.

    Raises:
        UserError: If the adapter is more than LoRA or DoRA of linear layers, or its scale is not
            certain.
    """
    kind, names = config.get("fine_tune_type", "lora"), list(names)
    if kind not in ("lora", "dora"):
        raise UserError(f"{folder} is MLX's and of fine_tune_type {kind!r:.40}: {_FUSE}")
    if strange := [name for name in names if name.rpartition(".")[2] not in _PARTS]:
        raise UserError(
            f"{folder} is MLX's and holds more than updates of linear layers, "
            f"{shortened(strange, 3)}: {_FUSE}"
        )
    options = config.get("lora_parameters")
    options = options if isinstance(options, Mapping) else {}
    rank, scale = (_positive(options, name, folder) for name in ("rank", "scale"))
    if "alpha" in options:
        raise UserError(
            f"{folder}: MLX's lora_parameters have scale {scale} and alpha {options['alpha']!r:.40}"
            ": its older releases multiply by scale * alpha / rank, newer ones by scale alone. "
            "Write the factor that was trained with as scale, and leave alpha out"
        )
    layers = dict.fromkeys(name.rpartition(".")[0] for name in names)
    return {
        "peft_type": "LORA",
        "r": int(rank),
        "lora_alpha": scale * rank,
        "lora_dropout": options.get("dropout", 0.0),
        "target_modules": list(layers),
        "use_dora": kind == "dora",
        "base_model_name_or_path": config.get("model"),
    }


def _positive(options: Mapping[str, Any], name: str, folder: Path) -> float:
    value = options.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise UserError(
            f"{folder}: MLX's lora_parameters must have a {name} above 0, got {value!r:.40}: write "
            f"the {name} of the training into its adapter_config.json"
        )
    return value


def hf_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of MLX's file, transposed, by HF PEFT's names without its prefix.

    Raises:
        UserError: If one is no matrix (those of experts are stacked).
    """
    found = {}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        if tensor.ndim != (1 if part == "m" else 2):
            raise UserError(
                f"MLX's {name} is {tuple(tensor.shape)}, no update of a linear layer: {_FUSE}"
            )
        found[f"{layer}.{_PARTS[part]}"] = tensor.T.contiguous() if tensor.ndim == 2 else tensor
    return found
