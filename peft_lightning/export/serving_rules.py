"""The rules by which vLLM, HF PEFT and llama.cpp take a LoRA, from its config and its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from peft_lightning.adapters.lora.hf_parameters import layers_as_parameters, taken_for_experts
from peft_lightning.adapters.lora.name_matching import match_pattern
from peft_lightning.export.gguf_layout import Layout
from peft_lightning.messages import shortened

# vllm/config/lora.py: MaxLoRARanks
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# docs/models/supported_models.md of vLLM, August 2026: served, but without LoRA
VLLM_WITHOUT_LORA = {"gpt2", "gpt_neox", "gptj", "bloom", "falcon", "mpt"}
# peft/tuners/tuners_utils.py: mamba_model_types
MAMBA = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
MERGE = "merge it: python -m peft_lightning merge CKPT OUT"
REWRITE = "write it as HF PEFT does, in Python: save_adapter(load_adapter(model, CKPT), model, OUT)"


def hf_peft_problems(
    config: Mapping[str, Any], ranks: Mapping[str, int], base: Any | None
) -> list[str]:
    """Return what HF PEFT reads otherwise than it was trained."""
    if base is None:
        return []
    found = []
    as_parameters = layers_as_parameters(config)
    named = taken_for_experts(SimpleNamespace(config=base), ranks)
    taken = [name for name in named if name not in as_parameters]
    if taken:
        found.append(
            f"it takes {shortened(taken, 2)} of a {base.model_type} for experts, and loses their "
            f"updates: load_adapter and save_adapter write them as it reads them, or {MERGE}"
        )
    if base.model_type in MAMBA and (out := [n for n in ranks if n.endswith("out_proj")]):
        found.append(f"it refuses {out[0]} in a {base.model_type}: {MERGE}")
    saved, rows = config.get("modules_to_save") or [], config.get("trainable_token_indices")
    tied = getattr(base.get_text_config(), "tie_word_embeddings", False)
    if tied and rows and any(name.endswith("lm_head") for name in saved):
        found.append(
            f"it cannot train rows of an embedding beside a head that is tied to it, {saved}: "
            f"{MERGE}"
        )
    return found


def only_in_transformers_5(
    config: Mapping[str, Any], ranks: Mapping[str, int], base: Any
) -> list[str]:
    """Return a note on what transformers 4.x, where it has another name, would leave out."""
    named = [*ranks, *(config.get("modules_to_save") or [])]
    if getattr(base, "model_type", None) != "gpt_neox" or not any(
        name.endswith("lm_head") for name in named
    ):
        return []
    return [
        "in transformers 5 alone: in 4.x the head of a gpt_neox is embed_out, which stays as it is"
    ]


def beyond_lora(config: Mapping[str, Any]) -> list[str]:
    """Return the problems that vLLM and llama.cpp have in common."""
    found = []
    if config.get("use_dora"):
        found.append(f"it does not know DoRA: {MERGE}")
    if config.get("modules_to_save"):
        found.append(f"modules_to_save {config['modules_to_save']} must be none: {MERGE}")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        found.append(f"trained biases are not taken: train with bias none, or {MERGE}")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.startswith(("pissa", "olora", "corda", "lora_ga", "loftq")):
        found.append(
            f"init_lora_weights {init}: it does not know that the base was changed for this "
            "adapter; make it plain LoRA: load_adapter onto its base and save_adapter"
        )
    if config.get("trainable_token_indices"):
        found.append(f"trained tokens are not taken: {MERGE}")
    return found


def vllm_problems(base: Any | None) -> list[str]:
    """Return why vLLM does not serve a base with LoRA."""
    if base is not None and base.model_type in VLLM_WITHOUT_LORA:
        return [f"it serves {base.model_type} without LoRA: {MERGE}"]
    return []


def llama_problems(ranks: Mapping[str, int], base: Any | None) -> list[str]:
    """Return what llama.cpp has no place for."""
    if base is None:
        return []
    try:
        layout = Layout(base)
        for name in ranks:
            layout.tensor_name(f"{name}.weight")
    except ValueError as error:
        return [str(error)]
    head = [name for name in ranks if name.rpartition(".")[2] == "lm_head"]
    if head and base.get_text_config().tie_word_embeddings:
        return [
            "the output embedding is tied to the input embedding in this base, and no tensor of "
            "its own: export CKPT OUT.gguf --type model"
        ]
    return []


def scales_of(config: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, float]:
    """Return the factor on the update of each layer."""
    alphas = config.get("alpha_pattern") or {}
    root = math.sqrt if config.get("use_rslora") else float
    default = config["lora_alpha"]
    return {n: (match_pattern(alphas, n) or default) / root(rank) for n, rank in ranks.items()}


def uniform_scale(config: Mapping[str, Any]) -> float:
    """Return the factor on every update for a program that ignores patterns."""
    rank = config["r"]
    return float(config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank))
