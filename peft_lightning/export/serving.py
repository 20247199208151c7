"""Which programs serve an adapter's folder as it is, by their rules: vLLM, HF PEFT, llama.cpp."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from peft_lightning.adapters.folder import CONFIG_FILE, read_adapter, read_facts, read_json
from peft_lightning.adapters.folder_files import tensor_files
from peft_lightning.adapters.lora.method import LoRA
from peft_lightning.adapters.mlx import is_mlx
from peft_lightning.adapters.state_dict import PREFIX
from peft_lightning.adapters.tensor_names import peft_names
from peft_lightning.base_model.resolve import locate
from peft_lightning.base_model.weights import StoredTensor, stored_tensors
from peft_lightning.export.serving_rules import (
    MERGE,
    REWRITE,
    VLLM_RANKS,
    beyond_lora,
    hf_peft_problems,
    llama_problems,
    only_in_transformers_5,
    scales_of,
    uniform_scale,
    vllm_problems,
)
from peft_lightning.messages import UserError, shortened

TENSORS = "adapter_model.safetensors"
_OF_BASE = ".base_layer.weight"


@dataclass(frozen=True)
class Verdict:
    """Whether a program serves an adapter.

    Args:
        accepted: Whether it loads the folder and computes the function that was trained; None if
            the rules find no reason against it, and do not know the base.
        problems: Why it does not, and what to change.
        notes: How to load the adapter with it; none if it does not.
        by: ``rules``, or ``loaded`` where it was tried.
        unknown: Why it is not known, if it is not.
    """

    accepted: bool | None
    problems: list[str]
    notes: list[str]
    by: str = "rules"
    unknown: str = "its rules find nothing against it and the base is not here"

    def __str__(self) -> str:
        if self.accepted is None:
            return f"not known, as {self.unknown}"
        tried = "loaded" if self.by == "loaded" else "by its rules"
        return f"{'yes' if self.accepted else 'no'}, {tried}"


def judge_folder(
    folder: Path, base_model: str | None, trust_remote_code: bool
) -> tuple[dict[str, Verdict] | None, bool]:
    """Judge an adapter's folder by its config and the shapes of its tensors.

    Args:
        folder: The folder of an adapter or of a whole model, fine-tuned or merged.
        base_model: The base model, if not the one that the adapter names.
        trust_remote_code: Whether code that comes with the model may run.

    Returns:
        The verdict on each program, None for a whole model; and whether the config of
        the base model was found.

    Raises:
        FileNotFoundError: If it is no adapter's folder.
        UserError: If a file in it cannot be read.
    """
    if not (folder / CONFIG_FILE).is_file():
        if not (folder / "config.json").is_file():
            read_adapter(folder)  # raises unless it is a fully fine-tuned model
        return None, False
    config = read_json(folder / CONFIG_FILE)
    if is_mlx(config):
        raise UserError(f"{folder} is MLX's, and these programs read HF PEFT's folders: {REWRITE}")
    if config.get("peft_type") == LoRA.peft_type:
        config = {**LoRA.hf_defaults, **config}
    base = _base_config(base_model or config.get("base_model_name_or_path"), trust_remote_code)
    new_tokens = read_facts(folder).get("new_tokens") or {}
    parts = tensor_files(folder, TENSORS).parts
    stored = {key: tensor for part in parts for key, tensor in stored_tensors(part).items()}
    if any(0 in tensor.shape for tensor in stored.values()):
        read_adapter(folder)  # raises with the reason
    names = peft_names(stored)
    found = judge(config, {names[key]: tensor for key, tensor in stored.items()}, base, new_tokens)
    strange = [name for name, own in names.items() if name != own]
    unread = []
    if len(parts) > 1:
        unread.append(f"it reads one {TENSORS}, and here are {len(parts)} parts: {REWRITE}")
    if strange:
        unread.append(
            f"{len(strange)} tensors have other names than HF PEFT's, {strange[0]}: {REWRITE}"
        )
    for name in ("vllm", "transformers"):
        if unread:
            found[name] = Verdict(False, [*found[name].problems, *unread], [])
    return found, base is not None


def judge(
    config: Mapping[str, Any],
    tensors: Mapping[str, StoredTensor],
    base: Any | None,
    new_tokens: Mapping[str, Any] | None = None,
) -> dict[str, Verdict]:
    """Return the verdict on each program.

    Args:
        config: Config of the adapter, as HF PEFT writes it.
        tensors: Those of its files, by HF PEFT's names.
        base: Config of the base model; None if unknown.
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
    ranks = {name: tensors[key].shape[0] for name, key in _named(tensors, ".lora_A.weight")}
    scales = scales_of(config, ranks)
    shared = beyond_lora(config)
    for name, _ in _named(tensors, ".lora_embedding_A")[:1]:
        shared.append(f"LoRA on an embedding, {name}, is not taken: {MERGE}")
    saved = [key for key in tensors if ".lora_" not in key and key.endswith(".weight")]
    whole = [key.removeprefix(PREFIX) for key in saved if not key.endswith(_OF_BASE)]
    if whole and not config.get("modules_to_save"):
        shared.append(f"weights beside the LoRA, {shortened(whole, 2)}, are not read: {MERGE}")
    vllm, rank = [*shared, *vllm_problems(base)], max(ranks.values(), default=config["r"])
    if rank > VLLM_RANKS[-1]:
        vllm.append(f"rank {rank} is above vLLM's largest, {VLLM_RANKS[-1]}: {MERGE}")
    if any(not math.isclose(scale, uniform_scale(config)) for scale in scales.values()):
        vllm.append(
            "it ignores rank_pattern and alpha_pattern, and would scale every update by "
            f"{uniform_scale(config):g}: {MERGE}"
        )
    limit = next((r for r in VLLM_RANKS if r >= rank), VLLM_RANKS[-1])
    llama = [*shared, *llama_problems(ranks, base)]
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
    first += only_in_transformers_5(config, ranks, base)
    way = "model.load_adapter(CKPT), or PeftModel.from_pretrained(base, CKPT)"
    if config.get("use_dora"):
        way = (
            "PeftModel.from_pretrained(base, CKPT), or AutoPeftModelForCausalLM; not "
            "model.load_adapter(CKPT), from_pretrained(CKPT) or a pipeline of it, in which "
            "transformers 5 loses DoRA's lengths"
        )
    hf_notes = [way, *first]
    return {
        "vllm": _verdict(vllm, [f"--enable-lora --max-lora-rank {limit}"], base),
        "transformers": _verdict(hf_peft_problems(config, ranks, base), hf_notes, base),
        "llama.cpp": _verdict(llama, llama_notes, base),
    }


def _verdict(problems: list[str], notes: list[str], base: Any | None) -> Verdict:
    """Return the verdict of rules: how to load an adapter is no advice where that is wrong."""
    if problems:
        return Verdict(False, problems, [])
    return Verdict(None if base is None else True, [], notes)


def _named(names: Iterable[str], end: str) -> list[tuple[str, str]]:
    """Return the layers that have a tensor of a kind, with the name of that tensor."""
    return [(n.removeprefix(PREFIX).removesuffix(end), n) for n in names if n.endswith(end)]


def _base_config(name: str | None, trust_remote_code: bool) -> Any | None:
    """Return the config of a base model; None if it cannot be found."""
    if not name:
        return None
    try:
        source, options = locate(name, None, weights=False)
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, **options)
    except (OSError, ValueError):
        return None
