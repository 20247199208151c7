"""What tells a base model from others, whatever its dtype and whichever adapter is in it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

_REMEMBERED = "_fingerprint_of_files"  # attribute of a model


def base_fingerprint(model: nn.Module) -> dict[str, Any]:
    """Return what tells a base model from others, the same with an adapter in it as without.

    ``weights`` is a hash of up to 64 values of each tensor, rounded to bfloat16, and those that
    float16 cannot hold exactly taken as 0: the same model has one fingerprint in every dtype. A
    model that was quantised when it was loaded, or rounded from float32 to float16, has that of
    the one it was made from. One whose files are quantised is said to be, and has its shapes.
    """
    remembered: dict[str, Any] | None = getattr(model, _REMEMBERED, None)
    if remembered is not None:
        return remembered
    found = fingerprint_of(type(model).__name__, _base_parameters(model))
    return {**found, "quantized": True} if any(map(_is_quantized, model.parameters())) else found


def remember_fingerprint(model: nn.Module, fingerprint: dict[str, Any]) -> None:
    """Let ``base_fingerprint`` of a model be that of the weights it was made from."""
    setattr(model, _REMEMBERED, fingerprint)


def fingerprint_of(architecture: str, parameters: Iterable[tuple[str, Tensor]]) -> dict[str, Any]:
    """Return the fingerprint of a base whose parameters come one by one, in any order."""
    seen = {name: (_shape(p), math.prod(_shape(p)), _sample(p).cpu()) for name, p in parameters}
    shapes = "".join(f"{name} {shape}\n" for name, (shape, _, _) in sorted(seen.items()))
    samples = torch.cat([sample for _, (_, _, sample) in sorted(seen.items())])
    return {
        "architecture": architecture,
        "parameters": sum(count for _, count, _ in seen.values()),
        "shapes": hashlib.sha256(shapes.encode()).hexdigest(),
        "weights": hashlib.sha256(samples.view(torch.int16).numpy().tobytes()).hexdigest(),
    }


def _shape(parameter: Tensor) -> tuple[int, ...]:
    """Return the shape of the matrix that a parameter stands for, of 4 bits too."""
    state = getattr(parameter, "quant_state", None)
    return tuple(parameter.shape if state is None else state.shape)


def _is_quantized(parameter: Tensor) -> bool:
    return hasattr(parameter, "quant_state") or parameter.dtype == torch.int8


def _base_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters without an adapter's, by their names without an adapter's infixes.

    An adapter's parameters stand beside a ``base_layer``, or on the model itself, where no
    transformers model has any. A bias that is trained stands for a ``frozen_bias``.
    """
    wrapped = {name for name, module in model.named_modules() if hasattr(module, "base_layer")}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        above = [".".join(parts[:i]) for i in range(1, len(parts))]
        beside = any(a in wrapped and f"{a}.base_layer" not in above for a in above)
        if above and not beside:
            if parts[-1] == "bias":
                parameter = getattr(model.get_submodule(above[-1]), "frozen_bias", parameter)
            yield ".".join(p for p in parts if p != "base_layer"), parameter


def _sample(weight: Tensor) -> Tensor:
    """Return up to 64 evenly spaced values in bfloat16, tiny ones as 0."""
    flat = weight.detach().reshape(-1)
    picked = flat[:: max(1, flat.numel() // 64)][:64].to(torch.bfloat16)
    # float16 holds each bfloat16 from 2^-16 up exactly, so no value crosses this bound in it
    return torch.where(picked.abs() < 2**-15, 0.0, picked).to(torch.bfloat16)
