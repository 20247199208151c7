"""LoRA's options: their checks, and HF PEFT's keys and defaults in ``adapter_config.json``."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch

from peft_lightning.adapters.base import PEFT_VERSION
from peft_lightning.adapters.lora.expressions import require_expression
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

# fan_in_fan_out follows from the layer; the next two only serve what is off; the others concern how
# training began, with VeLoRA what it kept in memory, and with ms-swift's three its learning rates
WITHOUT_EFFECT = frozenset(
    {"fan_in_fan_out", "megatron_core", "qalora_group_size"}
    | {"corda_config", "eva_config", "loftq_config", "lora_ga_config", "velora_config"}
    | {"lora_dtype", "lorap_emb_lr", "lorap_lr_ratio"}
)
_NONE_IF_EMPTY = ("exclude_modules", "layers_pattern", "layers_to_transform", "target_parameters")
_SET_BY_DEFAULTS = ("arrow_config", "kasa_config", "monteclora_config", "use_bdlora")

_MERGE = "merge it with HF PEFT, merge_and_unload(), and give the merged model as the base"
ELSEWHERE = f"load it with HF PEFT, or {_MERGE}"
_CONVERT = (
    "save it again where it was trained, with path_initial_model_for_weight_conversion, or merge "
    "it there, merge_and_unload(), and give the merged model as the base"
)


def as_read(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return HF PEFT's config of a LoRA without what only concerns how training began.

    What is empty counts as not given, as HF PEFT has it.

    Raises:
        UserError: If the base was changed in a way that cannot be had again, or parameters that
            are no layer's were adapted.
    """
    config = dict(config)
    for name in _NONE_IF_EMPTY:
        config[name] = None if config.get(name) in ([], "") else config.get(name)
    for name in _SET_BY_DEFAULTS:
        if config.get(name) == {}:
            raise UserError(f"the LORA adapter sets {name}, which is not implemented: {ELSEWHERE}")
    if names := config.get("target_parameters"):
        raise UserError(
            f"target_parameters {names!r:.120} are parameters of no linear layer, such as the "
            f"stacked weights of experts, whose updates are not implemented: {ELSEWHERE}"
        )
    config["init_lora_weights"] = _start_as_read(config.get("init_lora_weights", True))
    return config


def _start_as_read(init: Any) -> Any:
    """Return ``init_lora_weights`` of a file: True if the file's tensors are the whole update."""
    if not isinstance(init, str):
        return True if init is None else init
    init = init.lower()  # HF PEFT takes Gaussian and OLoRA too
    if init in ("eva", "mica"):  # chose A or B, and are plain LoRA then
        return True
    if init == "lora_ga":
        warnings.warn(
            "init_lora_weights 'lora_ga' has subtracted an initial update from the base, which HF "
            "PEFT does not save: this is read as HF PEFT reads it, onto the base as it is. If "
            f"answers are wrong, {_CONVERT}",
            stacklevel=1,
        )
        return True
    if init == "loftq":
        raise UserError(
            "init_lora_weights 'loftq' has put quantised weights in place of the base's: give the "
            "base that was saved with it, and set init_lora_weights to true in adapter_config.json"
        )
    if (is_decomposition(init) and "niter" in init) or init.startswith("corda"):
        raise UserError(
            f"init_lora_weights {init!r} has subtracted from the base what HF PEFT drew at random "
            f"or from data and did not save: {_CONVERT}"
        )
    return init


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
    for name in ("rank_pattern", "alpha_pattern"):
        for key in options[name]:
            require_expression(str(key), f"{name} key")
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
            f"embedding {next(iter(embeddings))}: leave it out, or train it with modules_to_save. "
            "A folder of HF PEFT that has it is merged there: merge_and_unload()"
        )


def _is_rank(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_alpha(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value <= torch.finfo(torch.float32).max
