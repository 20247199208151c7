"""What is in an adapter's folder: method, tensors, files, and how large each update is."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peft_lightning.adapters.base import Adapter
from peft_lightning.adapters.folder import read_adapter_config, read_facts, read_hf_config
from peft_lightning.adapters.folder_files import tensor_files
from peft_lightning.adapters.lora.arithmetic import check_factor_shapes, updates_of
from peft_lightning.adapters.lora.method import LoRA
from peft_lightning.adapters.lora.state_dict_keys import LORA_A, LORA_B
from peft_lightning.adapters.tensor_names import peft_names
from peft_lightning.messages import UserError

BASE_WEIGHTS = (".base_layer.weight", "embed_tokens.weight", "lm_head.weight", "wte.weight")


def inspect_adapter(folder: Path) -> dict[str, Any]:
    """Return the facts of an adapter's folder, ours or HF PEFT's, of any method.

    Returns:
        Those of ``folder_facts``, and for LoRA ``layers``, for soft prompts ``virtual_tokens``, see
        ``layer_facts``.

    Raises:
        FileNotFoundError: If it is no adapter's folder.
        UserError: If a file of it cannot be read.
    """
    tensors = tensors_in(folder)
    found = folder_facts(folder, tensors)
    if found["method"] == LoRA.peft_type:
        found["layers"] = _lora_layers(read_hf_config(folder)[0], tensors)
    elif "prompt_embeddings" in tensors:
        if tensors["prompt_embeddings"].ndim != 2:
            shape = tuple(tensors["prompt_embeddings"].shape)
            raise UserError(f"{folder}: prompt_embeddings is {shape}, not (tokens, dimensions)")
        found["virtual_tokens"] = [{"norm": n} for n in _norms(tensors["prompt_embeddings"])]
    return found


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of an adapter's folder of any method, but none of a whole model.

    Raises:
        FileNotFoundError: If it is no adapter's folder.
        UserError: If a file of it cannot be read.
    """
    if read_facts(folder).get("peft_type") == "FULL":
        return {}
    config, files = read_hf_config(folder)
    found = (files or tensor_files(folder, Adapter.tensor_file)).tensors()
    if config.get("peft_type", read_facts(folder).get("peft_type")) != LoRA.peft_type:
        return found
    names = peft_names(found)
    return {names[name]: tensor for name, tensor in found.items()}


def folder_facts(folder: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return what an adapter's folder is, without what its tensors do.

    Args:
        folder: Of an adapter of any method.
        tensors: Its tensors.

    Returns:
        ``method``, ``options`` away from HF PEFT's defaults, ``base_model``,
        ``base_fingerprint``, ``not_read`` (why the folder cannot be loaded; None if it can),
        ``facts`` (what else our file says), ``files`` (bytes by name), ``tensors`` and
        ``holds_base_weights`` (the names of tensors that the base has already).

    Raises:
        FileNotFoundError: If it is no adapter's folder.
        UserError: If a file of it cannot be read.
    """
    facts = read_facts(folder)
    whole = facts.get("peft_type") == "FULL"
    config = {} if whole else read_hf_config(folder)[0]
    method = str(config.get("peft_type", facts.get("peft_type")))
    if method == LoRA.peft_type:
        names = peft_names(tensors)
        tensors = {names[name]: tensor for name, tensor in tensors.items()}
    known = Adapter.by_peft_type.get(method)
    defaults = known.hf_defaults if known and not whole else {}
    whole_modules = config.get("modules_to_save") or []
    if not isinstance(whole_modules, list):
        raise UserError(f"{folder}: modules_to_save must be a list, got {whole_modules!r:.80}")
    saved = [f"{name}.weight" for name in whole_modules]
    if saved and config.get("ensure_weight_tying"):  # which saves both embeddings
        saved += BASE_WEIGHTS[1:]
    return {
        "method": method,
        "base_model": facts.get("base_model") or config.get("base_model_name_or_path"),
        "base_fingerprint": facts.get("base_fingerprint"),
        "options": {k: v for k, v in config.items() if v != defaults.get(k, None)},
        "not_read": _refusal(folder),
        "facts": {k: v for k, v in facts.items() if k not in ("base_model", "base_fingerprint")},
        "files": {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.is_file()},
        "tensors": {
            "count": len(tensors),
            "parameters": sum(t.numel() for t in tensors.values()),
            "bytes": sum(t.numel() * t.element_size() for t in tensors.values()),
            "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}),
        },
        "holds_base_weights": [
            n for n in tensors if n.endswith(BASE_WEIGHTS) and not n.endswith(tuple(saved))
        ],
    }


def layer_facts(b: Tensor, a: Tensor) -> dict[str, float]:
    """Return norm, effective rank and first singular value's share of the update ``b a``.

    The effective rank is the exponential of the entropy of the singular values as shares of
    their sum (Roy and Vetterli 2007). All are NaN where a value is not finite.

    Args:
        b: (out, r).
        a: (r, in).
    """
    if not (a.isfinite().all() and b.isfinite().all()):
        return dict.fromkeys(("norm", "effective_rank", "first_share"), math.nan)
    r_b, r_a = torch.linalg.qr(b, "r").R, torch.linalg.qr(a.T, "r").R
    s = torch.linalg.svdvals(r_b @ r_a.T)
    total = float(s.sum())
    if total == 0:
        return {"norm": 0.0, "effective_rank": 0.0, "first_share": 0.0}
    shares = s[s > 0] / total
    return {
        "norm": float(s.norm()),
        "effective_rank": float((-(shares * shares.log()).sum()).exp()),
        "first_share": float(s[0].square() / s.square().sum()),
    }


def nearest_tokens(prompt: Tensor, embeddings: Tensor, count: int = 3) -> list[list[int]]:
    """Return the ids whose embeddings point most in the direction of each virtual token.

    Args:
        prompt: (n, dim).
        embeddings: (V, dim) of the base's vocabulary.
        count: How many for each.
    """
    ours = torch.nn.functional.normalize(prompt.float(), dim=1)
    theirs = torch.nn.functional.normalize(embeddings.float(), dim=1)
    return (ours @ theirs.T).topk(count, dim=1).indices.tolist()


def _lora_layers(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any] | None:
    check_factor_shapes(tensors)
    try:
        lora = LoRA.from_hf_config(config)
        factors = {n: t for n, t in tensors.items() if n.endswith((LORA_A, LORA_B))}
        updates = updates_of(replace(lora, use_dora=False, lora_bias=False, bias="none"), factors)
    except ValueError:  # a variant that has no plain updates
        return None
    return {
        name: {"r": a.shape[0], "scaling": lora.scaling(name), **layer_facts(b, a)}
        for name, (b, a) in updates.items()
    }


def _norms(prompt: Tensor) -> list[float]:
    return prompt.float().norm(dim=1).tolist()


def _refusal(folder: Path) -> str | None:
    """Return why the folder's adapter cannot be loaded, by its files alone; None if it can."""
    try:
        read_adapter_config(folder)
    except UserError as error:
        return str(error)
    return None
