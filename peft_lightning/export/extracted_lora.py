"""A LoRA of the difference between a fine-tuned model and its base, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from peft_lightning.adapters.lora.arithmetic import factorise
from peft_lightning.adapters.lora.layers import is_conv1d, is_linear
from peft_lightning.base_model.weights import NotStreamableError, WeightFiles, open_weights
from peft_lightning.messages import UserError


@dataclass(frozen=True)
class ExtractedUpdate:
    """The update of one layer.

    Args:
        layer: The layer's name.
        b: (out_features, r), float32.
        a: (r, in_features), float32.
        squared_norm: Squared Frobenius norm of the difference.
        relative_norm: The norm of the difference as a share of the norm of the base's weight.
        retained: The share of the squared norm that ``b a`` retains.
        is_transposed: Whether the weight is stored transposed, as GPT-2's are.
    """

    layer: str
    b: Tensor
    a: Tensor
    squared_norm: float
    relative_norm: float
    retained: float
    is_transposed: bool


def open_model(name: str, trust_remote_code: bool, revision: str | None) -> WeightFiles:
    """Open the weights of a model to read them tensor by tensor.

    Args:
        name: Folder or hub id.
        trust_remote_code: Whether code that comes with the model may run.
        revision: Branch, tag or commit of a hub id.

    Raises:
        UserError: If the weights are not in safetensors files.
    """
    try:
        return open_weights(name, trust_remote_code=trust_remote_code, revision=revision)
    except NotStreamableError as reason:
        raise UserError(
            f"{name} cannot be read tensor by tensor, {reason}: give a folder with the model's "
            "safetensors files"
        ) from None


def find_differences(
    name: str, base: WeightFiles, tuned: str, other: WeightFiles
) -> tuple[list[str], dict[str, float]]:
    """Find the tensors in which two models differ.

    Args:
        name: Name of the base model, for the errors.
        base: Its weights.
        tuned: Name of the fine-tuned model.
        other: Its weights.

    Returns:
        The linear layers that differ; and the other tensors that differ, each with the norm of
        its difference as a share of its norm in the base.

    Raises:
        UserError: If the architectures or shapes are not the same.
    """
    if type(base.model) is not type(other.model):
        kinds = type(other.model).__name__, type(base.model).__name__
        raise UserError(f"{tuned} is a {kinds[0]} and {name} a {kinds[1]}: not its base")
    ours, theirs = (
        {n: tuple(p.shape) for n, p in files.model.named_parameters()} for files in (base, other)
    )
    if wrong := sorted(n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)):
        first = f"{wrong[0]} is {theirs.get(wrong[0])} there and {ours.get(wrong[0])} here"
        raise UserError(f"{tuned} is not a tuned {name}: {first}")
    linear = {n for n, module in base.model.named_modules() if is_linear(module)}
    layers: list[str] = []
    rest: dict[str, float] = {}
    for parameter, _ in base.model.named_parameters():
        before, after = (files.of(parameter).read().double() for files in (base, other))
        if torch.equal(before, after):
            continue
        layer = parameter.removesuffix(".weight")
        if parameter.endswith(".weight") and layer in linear:
            layers.append(layer)
        else:
            norm = float(before.norm())
            rest[parameter] = float((after - before).norm()) / norm if norm else float("inf")
    return layers, rest


def extract_updates(
    base: WeightFiles,
    other: WeightFiles,
    layers: list[str],
    rank: int | None,
    retain: float | None,
) -> Iterator[ExtractedUpdate]:
    """Factorise the difference of each layer by truncated SVD.

    Args:
        base: Weights of the base model.
        other: Weights of the fine-tuned model.
        layers: Names of linear layers.
        rank: Largest rank of a layer.
        retain: Instead of a rank, the share of the squared norm to retain.

    Raises:
        UserError: If a difference is not finite.
    """
    for layer in layers:
        weight = base.of(f"{layer}.weight").read().double()
        delta = other.of(f"{layer}.weight").read().double() - weight
        if not delta.isfinite().all():
            raise UserError(f"{layer}.weight has values that are not finite")
        squared, norm = float(delta.square().sum()), float(weight.norm())
        is_transposed = is_conv1d(base.model.get_submodule(layer))
        (b, a), retained = factorise(delta.T if is_transposed else delta, rank, retain)
        share = squared**0.5 / norm if norm else float("inf")
        yield ExtractedUpdate(layer, b.float(), a.float(), squared, share, retained, is_transposed)
