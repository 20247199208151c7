"""The door of ``kernels``: ``patch_model`` makes a base model fast and reports what it did."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from peft_lightning.kernels.activation_checkpointing import recompute_activations
from peft_lightning.kernels.attention import FLAT_ATTENTION
from peft_lightning.kernels.attention_cuda import has_varlen
from peft_lightning.kernels.compiled_layers import compile_layers
from peft_lightning.kernels.float32_compute import compute_as_stored, compute_as_the_run
from peft_lightning.kernels.gated_mlp import fuse_gated_mlps
from peft_lightning.kernels.native.library import kernels_state
from peft_lightning.kernels.own_forward import own_forward, set_forward
from peft_lightning.kernels.rms_norm import fuse_norms
from peft_lightning.kernels.rotary import fuse_rotary


@dataclass(frozen=True)
class PatchReport:
    """What ``patch_model`` did to a model.

    Args:
        model: The patched model.
        rows: For each part that can be computed in several ways, how it is computed.
        forwards: The layers whose ``forward`` was replaced, and what was in its place: a function,
            or None for the method of the layer's class.
    """

    model: nn.Module
    rows: dict[str, str]
    forwards: dict[nn.Module, Callable[..., Any] | None]

    def undo(self) -> None:
        """Restore the layers and dtypes of before, bit for bit; detach the adapter first."""
        compute_as_stored(self.model)
        for layer, forward in self.forwards.items():
            set_forward(layer, forward)
        own_forward(self.model).forwards = {}


def patch_model(
    model: nn.Module,
    *,
    precision: str | None = None,
    device: torch.device | None = None,
    fuse: bool = True,
    compile: bool = False,
    activation_checkpointing: bool = False,
) -> PatchReport:
    """Let a base model compute the same in less time or memory.

    Args:
        model: A causal LM of transformers without an adapter; changed in place. Names of modules
            and parameters stay as they are.
        precision: Lightning's name of the precision of a run; None outside a run.
        device: Where the model will compute; where it is if None.
        fuse: Whether norms, gated MLPs and rotary embeddings are computed by one function each.
            torch.compile does that itself.
        compile: Whether decoder layers are compiled by torch.compile.
        activation_checkpointing: Whether decoder layers recompute their activations in the
            backward pass.

    Returns:
        The report, whose ``undo`` restores the model.

    Raises:
        UserError: If the model has no layers that can be compiled or recomputed, or there is no
            compiler on this machine.
    """
    device = device or next(model.parameters()).device
    forwards = _forwards(model)
    compute_as_the_run(model, precision, device)
    own = _forwards(model)  # in the same dtype
    norms = _patched(model, fuse_norms) if fuse else set()
    mlps = _patched(model, fuse_gated_mlps) if fuse else set()
    rotary = _patched(model, fuse_rotary) if fuse else set()
    compiled = _patched(model, compile_layers) if compile else set()
    fused = [layer for layer, f in own.items() if layer.__dict__.get("forward") is not f]
    if activation_checkpointing:
        recompute_activations(model)
    ours = {layer: (own[layer], layer.__dict__.get("forward")) for layer in fused}
    own_forward(model).forwards = ours
    rows = {
        "norms": _count(model, norms, "Norm"),
        "gated MLPs": _count(model, mlps, "MLP"),
        "rotary": _count(model, rotary, "Attention", others=False),
        "attention": _attention(model, device),
        "on the CPU": kernels_state() if device.type == "cpu" and fuse else "",
        "torch.compile": f"{len(compiled)} layers" if compiled else "",
    }
    return PatchReport(
        model,
        {name: how for name, how in rows.items() if how},
        {m: f for m, f in forwards.items() if m.__dict__.get("forward") is not f},
    )


def wrap_forward(layer: nn.Module, function: Callable[..., Any]) -> None:
    """Let ``function`` compute the outputs of ``layer``.

    Args:
        layer: Changed in place; its class, its state and its names stay as they are.
        function: Takes the forward of before, then the inputs.
    """
    layer.forward = partial(function, layer.forward)


def _forwards(model: nn.Module) -> dict[nn.Module, Callable[..., Any] | None]:
    """Return what each layer has as ``forward`` in place of its class's method, or None."""
    return {layer: layer.__dict__.get("forward") for layer in model.modules()}


def _patched(model: nn.Module, patch: Callable[[nn.Module], Any]) -> set[nn.Module]:
    """Return the layers whose ``forward`` is replaced by ``patch``."""
    before = _forwards(model)
    patch(model)
    return {layer for layer, f in before.items() if layer.__dict__.get("forward") is not f}


def _count(model: nn.Module, fused: set[nn.Module], kind: str, others: bool = True) -> str:
    """Return how many layers of a kind are fused, by class: "LlamaRMSNorm fused (61)"."""
    found: Counter[str] = Counter()
    for layer in model.modules():
        name, is_fused = type(layer).__name__, layer in fused
        if re.search(f"{kind}$", name) and (is_fused or others):
            found[f"{name} {'fused' if is_fused else 'as it is'}"] += 1
    return ", ".join(f"{what} ({count})" for what, count in found.items())


def _attention(model: Any, device: torch.device) -> str:
    name = model.config._attn_implementation
    if name != FLAT_ATTENTION:
        return f"{name}, of transformers"
    varlen = device.type == "cuda" and has_varlen(device)
    return "flash kernel over sequences" if varlen else f"each sequence alone, on {device.type}"
