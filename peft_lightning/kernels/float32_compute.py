"""A base of two bytes a weight that computes in float32: for CPUs without bfloat16 products."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peft_lightning.kernels.machine import find_machine
from peft_lightning.kernels.native.stored import StoredForward, forward_linear, stored_forward
from peft_lightning.kernels.precision import name_of, widens

HALF = (torch.bfloat16, torch.float16)

_STORED = "_stored_dtypes"  # attribute of a module: by name, of its parameters that were widened


def compute_in_float32(model: nn.Module) -> nn.Module:
    """Let a model whose weights are bfloat16 or float16 compute in float32.

    The weights of linear layers and embeddings stay as they are, and are converted where they are
    used: linear layers block by block, embeddings row by row. The other parameters (norms, biases)
    become float32. What is computed is what a float32 model with the same rounded weights would
    compute. A model that has no such weights, or computes so already, is left alone.

    Args:
        model: A base, before an adapter is attached to it. Changed in place.

    Returns:
        ``model``.
    """
    for layer in model.modules():
        if _is_half(getattr(layer, "weight", None)) and (function := _forward_of(layer)):
            layer.forward = StoredForward(layer, function, torch.float32)
        _widen(layer)
    return model


def compute_as_stored(model: nn.Module) -> nn.Module:
    """Undo ``compute_in_float32``: the model is bit for bit as it was."""
    for layer in model.modules():
        found = stored_forward(layer)
        if found is not None and found.dtype is not None:
            del layer.forward
        for name, dtype in layer.__dict__.pop(_STORED, {}).items():
            parameter = getattr(layer, name)
            parameter.data = parameter.data.to(dtype)
    return model


def compute_as_the_run(
    model: Any, precision: str | None = None, device: torch.device | None = None
) -> None:
    """Let a base of bfloat16 or float16 weights compute in float32 on a CPU where that is wanted.

    In a run that is for precision 32-true; outside a run, if the processor has no fast products
    in the dtype of the weights.

    Args:
        model: The base, before an adapter is attached to it.
        precision: Lightning's name of the run's precision; None outside a run.
        device: The run's; the model's own if None.
    """
    device = model.device if device is None else device
    if device.type != "cpu" or model.dtype not in HALF:
        return
    if precision is None:
        wanted = widens(find_machine(), str(name_of(model.dtype)))
    else:
        wanted = precision == "32-true"
    if wanted:
        compute_in_float32(model)


def _is_half(weight: Any) -> bool:
    return isinstance(weight, Tensor) and weight.dtype in HALF


def _forward_of(layer: nn.Module) -> Callable[..., Tensor] | None:
    """Return what a layer computes in float32 with its weight as it is; None if not known."""
    kind = type(layer)
    if "forward" in layer.__dict__:  # its own, or another library's
        return None
    if kind.forward in (nn.Linear.forward, Conv1D.forward):
        return partial(forward_linear, dtype=torch.float32)
    if kind.forward is nn.Embedding.forward or hasattr(layer, "embed_scale"):
        return _look_up
    return _own_rows if isinstance(layer, nn.Embedding) else None


def _look_up(layer: Any, ids: Tensor) -> Tensor:
    found = nn.Embedding.forward(layer, ids).float()
    scale = getattr(layer, "embed_scale", None)
    return found if scale is None else found * scale


def _own_rows(layer: Any, *args: Any, **kwargs: Any) -> Tensor:
    return type(layer).forward(layer, *args, **kwargs).float()


def _widen(layer: nn.Module) -> None:
    """Make the parameters and buffers of ``layer`` float32, but the weight that it converts."""
    found = stored_forward(layer)
    kept = found is not None and found.dtype is not None
    stored = layer.__dict__.setdefault(_STORED, {})
    for name, tensor in [*layer._parameters.items(), *layer._buffers.items()]:
        if tensor is not None and tensor.dtype in HALF and not (kept and name == "weight"):
            stored[name] = tensor.dtype
            tensor.data = tensor.data.float()
