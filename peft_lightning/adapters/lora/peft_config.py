"""LoRA's options: their checks, and HF PEFT's keys and defaults in ``adapter_config.json``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from peft_lightning.adapters.base import PEFT_VERSION
from peft_lightning.adapters.lora.init import INITS, is_decomposition, is_known
from peft_lightning.adapters.lora.trainable_biases import BIAS_CHOICES
from peft_lightning.adapters.new_tokens import read_new_tokens
from peft_lightning.messages import UserError, check_choice, did_you_mean

HF_DEFAULTS: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "base_model_name_or_path": None,
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "kasa_config": None,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 8,
    "lora_bias": False,
    "lora_dropout": 0.0,
    "lora_ga_config": None,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "monteclora_config": None,
    "peft_type": "LORA",
    "peft_version": PEFT_VERSION,
    "qalora_group_size": 16,
    "r": 8,
    "rank_pattern": {},
    "revision": None,
    "target_modules": None,
    "target_parameters": None,
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
    "velora_config": None,
}

# fan_in_fan_out follows from the layer; the other two only serve what is off
WITHOUT_EFFECT = frozenset({"fan_in_fan_out", "megatron_core", "qalora_group_size"})


def checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of ``LoRA`` with empty lists and dictionaries as its type has them.

    Raises:
        UserError: If a value is out of its range, or two options exclude each other.
    """

    def require(ok: bool, name: str, rule: str) -> None:
        if not ok:
            raise UserError(f"{name} must be {rule}, got {options[name]!r}")

    require(_is_rank(options["r"]), "r", "a whole number of at least 1")
    require(_is_alpha(options["lora_alpha"]), "lora_alpha", "a number above 0")
    dropout = options["lora_dropout"]
    dropout_ok = isinstance(dropout, int | float) and 0 <= dropout < 1
    require(dropout_ok, "lora_dropout", "at least 0 and below 1")
    ranks = dict(options["rank_pattern"] or {})  # HF PEFT takes None for none
    alphas = dict(options["alpha_pattern"] or {})
    options = {**options, "rank_pattern": ranks, "alpha_pattern": alphas}
    ranks_ok = all(map(_is_rank, ranks.values()))
    require(ranks_ok, "rank_pattern", "names with whole numbers of at least 1")
    require(all(map(_is_alpha, alphas.values())), "alpha_pattern", "names with numbers above 0")
    init = options["init_lora_weights"]
    if not is_known(init):
        raise UserError(
            f"init_lora_weights must be true, false, {', '.join(INITS)}, got {init!r}"
            + did_you_mean(str(init), INITS)
        )
    for name in ("modules_to_save", "trainable_token_indices"):
        options[name] = options[name] or None
    options["new_tokens"] = read_new_tokens(options["new_tokens"])
    check_choice("bias", options["bias"], BIAS_CHOICES)
    if options["lora_bias"] and (options["use_dora"] or init not in (True, False)):
        raise UserError(
            f"lora_bias goes with neither use_dora ({options['use_dora']}) nor another "
            f"init_lora_weights than true or false ({init!r}): HF PEFT would not read it"
        )
    return options


def check_embedding_targets(options: Mapping[str, Any], embeddings: Collection[str]) -> None:
    """Raise UserError if an option for linear layers only is set and embeddings are targeted.

    Args:
        options: Those of ``LoRA``.
        embeddings: Names of the targeted embeddings.
    """
    init = options["init_lora_weights"]
    given = {
        "use_dora": options["use_dora"],
        "lora_bias": options["lora_bias"],
        f"init_lora_weights {init!r}": is_decomposition(init) or init == "orthogonal",
    }
    if embeddings and (names := [name for name, is_set in given.items() if is_set]):
        raise UserError(
            f"{' and '.join(names)} takes linear layers only, and target_modules choose the "
            f"embedding {next(iter(embeddings))}: leave it out, or train it with modules_to_save"
        )


def _is_rank(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_alpha(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value <= torch.finfo(torch.float32).max
