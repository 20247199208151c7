"""Which programs serve an adapter's folder as it is, by their rules: vLLM, HF PEFT, llama.cpp."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import AutoConfig

from peft_lightning.adapters.folder import CONFIG_FILE, read_adapter, read_facts, read_json
from peft_lightning.adapters.lora.hf_parameters import layers_as_parameters, taken_for_experts
from peft_lightning.adapters.lora.method import LoRA
from peft_lightning.adapters.lora.name_matching import match_pattern
from peft_lightning.adapters.state_dict import PREFIX
from peft_lightning.base_model.resolve import locate
from peft_lightning.base_model.weights import stored_tensors
from peft_lightning.export.gguf_layout import Layout
from peft_lightning.messages import shortened

# vllm/config/lora.py: MaxLoRARanks
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# docs/models/supported_models.md of vLLM, August 2026: served, but without LoRA
VLLM_WITHOUT_LORA = {"gpt2", "gpt_neox", "gptj", "bloom", "falcon", "mpt"}
# peft/tuners/tuners_utils.py: mamba_model_types
MAMBA = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
MERGE = "merge it: python -m peft_lightning merge CKPT OUT"


@dataclass(frozen=True)
class Verdict:
    """Whether a program serves an adapter.

    Args:
        accepted: Whether it loads the folder and computes the function that was trained; None if
            the rules find no reason against it, and do not know the base.
        problems: Why it does not, and what to change.
        notes: How to load the adapter with it; none if it does not.
        by: ``rules``, or ``loaded`` where it was tried.
    """

    accepted: bool | None
    problems: list[str]
    notes: list[str]
    by: str = "rules"

    def __str__(self) -> str:
        if self.accepted is None:
            return "not known, as its rules find nothing against it and the base is not here"
        tried = "loaded" if self.by == "loaded" else "by its rules"
        return f"{'yes' if self.accepted else 'no'}, {tried}"


def judge_folder(
    folder: Path, base_model: str | None, trust_remote_code: bool
) -> tuple[dict[str, Verdict] | None, bool]:
    """Judge an adapter's folder by its config and the shapes of its tensors.

    Args:
        folder: The folder of an adapter or of a fully fine-tuned model.
        base_model: The base model, if not the one that the adapter names.
        trust_remote_code: Whether code that comes with the model may run.

    Returns:
        The verdict on each program, None for a fully fine-tuned model; and whether the config of
        the base model was found.

    Raises:
        FileNotFoundError: If it is no adapter's folder.
        UserError: If a file in it cannot be read.
    """
    if not (folder / CONFIG_FILE).is_file():
        read_adapter(folder)  # raises unless it is a fully fine-tuned model
        return None, False
    config = read_json(folder / CONFIG_FILE)
    if config.get("peft_type") == LoRA.peft_type:
        config = {**LoRA.hf_defaults, **config}
    base = _base_config(base_model or config.get("base_model_name_or_path"), trust_remote_code)
    new_tokens = read_facts(folder).get("new_tokens") or {}
    return judge(config, _ranks(folder), base, _embeddings(folder), new_tokens), base is not None


def judge(
    config: Mapping[str, Any],
    ranks: Mapping[str, int],
    base: Any | None,
    embeddings: Sequence[str] = (),
    new_tokens: Mapping[str, Any] | None = None,
) -> dict[str, Verdict]:
    """Return the verdict on each program.

    Args:
        config: Config of the adapter, as HF PEFT writes it.
        ranks: Rank of each adapted layer, by name.
        base: Config of the base model; None if unknown.
        embeddings: Names of the adapted embeddings.
        new_tokens: Tokens that the adapter adds to the vocabulary, with their ids.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        only = f"it takes LoRA only, and this is {kind}: serve it with transformers and HF PEFT"
        notes = ["PeftModel.from_pretrained(base, CKPT); model.load_adapter takes no prompts"]
        removed = f"{only}; vLLM removed prompt adapters in 0.10"
        return {
            "vllm": Verdict(False, [removed], []),
            "transformers": _verdict([], notes, base),
            "llama.cpp": Verdict(False, [only], []),
        }
    scales = _scales(config, ranks)
    shared = _beyond_lora(config)
    if embeddings:
        shared.append(f"LoRA on an embedding, {embeddings[0]}, is not taken: {MERGE}")
    vllm, rank = [*shared, *_vllm(config, base)], max(ranks.values(), default=config["r"])
    if rank > VLLM_RANKS[-1]:
        vllm.append(f"rank {rank} is above vLLM's largest, {VLLM_RANKS[-1]}: {MERGE}")
    if any(not math.isclose(scale, _uniform(config)) for scale in scales.values()):
        vllm.append(
            "it ignores rank_pattern and alpha_pattern, and would scale every update by "
            f"{_uniform(config):g}: {MERGE}"
        )
    limit = next((r for r in VLLM_RANKS if r >= rank), VLLM_RANKS[-1])
    llama = [*shared, *_llama(ranks, base)]
    folded = config.get("use_rslora") or len(set(scales.values())) > 1
    own = "python -m peft_lightning export CKPT OUT.gguf --type adapter"
    llama_notes = [f"as a GGUF file: {own}"]
    if folded:
        llama_notes.append("llama.cpp's own converter would lose the scales of these layers")
    first = []
    size = 0 if base is None else base.get_text_config().vocab_size
    if any(token["id"] >= size for token in (new_tokens or {}).values()):
        first.append(
            f"before it, base.resize_token_embeddings(len(tokenizer)) with CKPT's tokenizer, for "
            f"its {len(new_tokens or {})} new tokens; AutoPeftModelForCausalLM.from_pretrained("
            "CKPT) does that by itself"
        )
    hf_notes = ["model.load_adapter(CKPT), or PeftModel.from_pretrained(base, CKPT)", *first]
    return {
        "vllm": _verdict(vllm, [f"--enable-lora --max-lora-rank {limit}"], base),
        "transformers": _verdict(_hf_peft(config, ranks, base), hf_notes, base),
        "llama.cpp": _verdict(llama, llama_notes, base),
    }


def _verdict(problems: list[str], notes: list[str], base: Any | None) -> Verdict:
    """Return the verdict of rules: how to load an adapter is no advice where that is wrong."""
    if problems:
        return Verdict(False, problems, [])
    return Verdict(None if base is None else True, [], notes)


def _hf_peft(config: Mapping[str, Any], ranks: Mapping[str, int], base: Any | None) -> list[str]:
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


def _beyond_lora(config: Mapping[str, Any]) -> list[str]:
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


def _vllm(config: Mapping[str, Any], base: Any | None) -> list[str]:
    if base is not None and base.model_type in VLLM_WITHOUT_LORA:
        return [f"it serves {base.model_type} without LoRA: {MERGE}"]
    return []


def _llama(ranks: Mapping[str, int], base: Any | None) -> list[str]:
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


def _scales(config: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, float]:
    """Return the factor on the update of each layer."""
    alphas = config.get("alpha_pattern") or {}
    root = math.sqrt if config.get("use_rslora") else float
    default = config["lora_alpha"]
    return {n: (match_pattern(alphas, n) or default) / root(rank) for n, rank in ranks.items()}


def _uniform(config: Mapping[str, Any]) -> float:
    """Return the factor on every update for a program that ignores patterns."""
    rank = config["r"]
    return float(config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _ranks(folder: Path) -> dict[str, int]:
    """Return the rank of each adapted layer from the shapes of the folder's tensors."""
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no {file.name}")
    end = ".lora_A.weight"
    return {
        key.removeprefix(PREFIX).removesuffix(end): stored.shape[0]
        for key, stored in stored_tensors(file).items()
        if key.endswith(end)
    }


def _embeddings(folder: Path) -> list[str]:
    """Return the names of the adapted embeddings from the folder's tensors."""
    keys, end = stored_tensors(folder / "adapter_model.safetensors"), ".lora_embedding_A"
    return [k.removeprefix(PREFIX).removesuffix(end) for k in keys if k.endswith(end)]


def _base_config(name: str | None, trust_remote_code: bool) -> Any | None:
    """Return the config of a base model; None if it cannot be found."""
    if not name:
        return None
    try:
        source, options = locate(name, None, weights=False)
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, **options)
    except (OSError, ValueError):
        return None
