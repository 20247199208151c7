"""How each part of a step is computed, as the table at a run's start says it."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import nn

from peft_lightning.hidden_cache.cache import adapted_depth
from peft_lightning.kernels import compiled_layers, gated_mlp, rms_norm, rotary
from peft_lightning.kernels.attention import FLAT_ATTENTION
from peft_lightning.kernels.attention_cuda import has_varlen
from peft_lightning.kernels.native.library import kernels_state
from peft_lightning.training.precision import rows_of_table


def path_of(model: nn.Module, parameter: str) -> str:
    """Return how the layer that holds ``parameter`` says that it is computed; "" if it does not."""
    names = parameter.split(".")
    for end in range(len(names) - 1, 0, -1):
        module = model.get_submodule(".".join(names[:end]))
        if isinstance(path := getattr(module, "path", None), str):
            return path
    return ""


def paths_table(rows: dict[str, str]) -> str:
    """Return what ``paths_of`` returned as a table of one line each."""
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {how}" for name, how in rows.items())


def paths_of(module: Any) -> dict[str, str]:
    """Return how each part of a step is computed that can be computed in several ways.

    Args:
        module: A ``CausalLMModule`` whose model is built, with or without a trainer.
    """
    model = module.model
    rows = {
        "norms": _fused(model, rms_norm, r"Norm"),
        "gated MLPs": _fused(model, gated_mlp, r"MLP"),
        "rotary": _fused(model, rotary, r"Attention", others=False),
        "attention": _attention(model.config._attn_implementation, module.device),
        "loss": module.loss_path(),
    }
    if module.device.type == "cpu" and not module.compile_layers:
        rows["on the CPU"] = kernels_state()
    if depth := adapted_depth(model, module.adapter):
        what = "read from disk" if module.cache_hidden_states else "no graph, nothing kept"
        rows[f"layers below {depth}"] = what
    if compiled := sum(_runs(m, compiled_layers) for m in model.modules()):
        rows["torch.compile"] = f"{compiled} layers"
    rows = {**rows_of_table(module), **rows}
    return {name: how for name, how in rows.items() if how}


def _runs(module: Any, of: Any) -> bool:
    """Whether the forward of ``module`` was replaced by one of the unit ``of``."""
    forward = module.__dict__.get("forward")
    while isinstance(forward, partial):
        if forward.func.__module__ == of.__name__:
            return True
        forward = next((a for a in forward.args if isinstance(a, partial)), None)
    return False


def _fused(model: nn.Module, unit: Any, kind: str, others: bool = True) -> str:
    """Return how many modules of a kind run fused, by class: "LlamaRMSNorm fused (61)"."""
    found: Counter[str] = Counter()
    for module in model.modules():
        name, runs = type(module).__name__, _runs(module, unit)
        if re.search(f"{kind}$", name) and (runs or others):
            found[f"{name} {'fused' if runs else 'as it is'}"] += 1
    return ", ".join(f"{what} ({count})" for what, count in found.items())


def _attention(name: str, device: torch.device) -> str:
    if name != FLAT_ATTENTION:
        return f"{name}, of transformers"
    varlen = device.type == "cuda" and has_varlen(device)
    return "flash kernel over sequences" if varlen else f"each sequence alone, on {device.type}"
