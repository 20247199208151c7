"""Merging: an adapter's updates added to the base's weights, in memory and undoable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from peft_lightning.adapters.base import Adapter, attached_adapter
from peft_lightning.adapters.full import Full
from peft_lightning.adapters.lora.layers import LoRALinear, is_conv1d
from peft_lightning.adapters.lora.merge_extra_modules import merged_extra_modules
from peft_lightning.adapters.lora.method import LoRA
from peft_lightning.adapters.merged_parameters import replaced_parameters
from peft_lightning.messages import UserError


@torch.no_grad()
def add_update(
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    scaling: float,
    name: str,
    *,
    transposed: bool = False,
    dtype: torch.dtype | None = None,
    magnitude: Tensor | None = None,
) -> Tensor:
    """Return ``weight + scaling * b @ a``, rounded once.

    Args:
        weight: (out, in), of any floating dtype. Not changed.
        a: (r, in).
        b: (out, r).
        scaling: Factor on the update.
        name: What an error calls the layer.
        transposed: Whether ``weight`` is (in, out), as in GPT-2's ``Conv1D``.
        dtype: The dtype of the result; that of ``weight`` if None. The sum is computed in
            float32, or float64 for a float64 weight.
        magnitude: (out,), DoRA's magnitude vector, to which each row of the sum is scaled.

    Raises:
        UserError: If the weight is no matrix of this shape (it may be quantised), or a sum is
            not finite.
    """
    shape = (a.shape[1], b.shape[0]) if transposed else (b.shape[0], a.shape[1])
    if not weight.is_floating_point() or tuple(weight.shape) != shape:
        raise UserError(
            f"cannot merge into {name}: its weight is {tuple(weight.shape)} {weight.dtype}, and a "
            f"floating-point matrix {shape} is needed; merge into a base that is not quantised"
        )
    wide = torch.promote_types(weight.dtype, torch.float32)
    update = b.to(weight.device, wide) @ a.to(weight.device, wide)  # (out, in)
    total = (update.T if transposed else update).mul_(scaling).add_(weight)
    if magnitude is not None:
        rows = total.T if transposed else total  # (out, in)
        norms = torch.linalg.vector_norm(rows, dim=1).clamp(min=torch.finfo(rows.dtype).tiny)
        rows.mul_((magnitude.to(rows) / norms)[:, None])
    merged = total.to(dtype or weight.dtype).contiguous()
    if not merged.isfinite().all():
        found = "its weight or update is not finite" if not total.isfinite().all() else None
        raise UserError(
            f"cannot merge into {name}: {found or f'the sum is too large for {merged.dtype}'}"
        )
    return merged


def merged_weight(layer: LoRALinear, name: str = "the layer") -> Tensor:
    """Return the weight with which ``layer.base_layer`` alone computes what ``layer`` does.

    Its shape and dtype are those of the base's weight; see ``add_update``.
    """
    return add_update(
        layer.weight,
        *layer.factors(),
        layer.scaling,
        name,
        transposed=is_conv1d(layer.base_layer),
        magnitude=getattr(layer, "lora_magnitude_vector", None),
    )


def merged_bias(layer: LoRALinear, name: str = "the layer") -> Tensor | None:
    """Return the bias that goes with ``merged_weight``, in the dtype of the base's."""
    require_place_for_bias(layer, name)
    bias = layer.total_bias()
    return None if bias is None or layer.bias is None else bias.detach().to(layer.bias.dtype)


def require_place_for_bias(layer: LoRALinear, name: str) -> None:
    """Raise UserError if the update has a bias and the base has none."""
    if layer.lora_B.bias is not None and layer.bias is None:
        raise UserError(
            f"cannot merge into {name}: its update has a bias (lora_bias) and the base has none; "
            "serve the adapter unmerged, or train it without lora_bias"
        )


def require_mergeable(adapter: Adapter | None, where: object = "the model") -> Adapter:
    """Return ``adapter`` if it changes weights of a base.

    Raises:
        UserError: If it does not; says what to do instead.
    """
    if adapter is not None and merges_itself(adapter):
        return adapter
    if isinstance(adapter, LoRA):
        return adapter
    if isinstance(adapter, Full):
        raise UserError(
            f"{where} is a whole model already, fully fine-tuned: there is nothing to merge, load "
            "it as any model's folder"
        )
    if adapter is None:
        raise UserError(f"{where} has no adapter: there is nothing to merge")
    if type(adapter).prepare_inputs is Adapter.prepare_inputs:
        raise UserError(
            f"{where} is a {type(adapter).__name__}, which does not say how it is merged: "
            "implement merged_parameters in its class, or serve it unmerged: generate --ckpt_path"
        )
    raise UserError(
        f"{where} is a {adapter.peft_type} adapter, which changes the inputs and no weight: it "
        "cannot be merged. Serve it as an adapter: generate --ckpt_path, or HF PEFT"
    )


def merges_itself(adapter: Adapter) -> bool:
    """Whether the adapter's class says what its base's parameters are once it is merged."""
    return type(adapter).merged_parameters is not Adapter.merged_parameters


def require_lora(adapter: Adapter | None, what: str, where: object = "the model") -> LoRA:
    """Return ``adapter`` if it is a LoRA.

    Raises:
        UserError: If it is another one that can be merged; says to merge it first.
    """
    if not isinstance(adapter := require_mergeable(adapter, where), LoRA):
        raise UserError(
            f"{what} takes LoRA only, and {where} is a {adapter.peft_type} adapter: write a "
            "model's folder by the command merge, and export that with --type model"
        )
    return adapter


@contextmanager
def merged(model: nn.Module) -> Iterator[nn.Module]:
    """Replace the adapted layers of ``model`` by the base's, with merged weights, in the block.

    Within the block ``state_dict`` and ``save_pretrained`` see a model without an adapter. After
    it the adapter's layers are back over the base's original tensors, without rounding. The merged
    weights need memory beside the original ones. A tied weight is untied in the block.

    Raises:
        UserError: If the model has no adapter that can be merged, or a merged weight is not finite.
            The model is unchanged.
    """
    adapter = require_mergeable(attached_adapter(model))
    if not isinstance(adapter, LoRA) or merges_itself(adapter):
        with replaced_parameters(adapter, model):
            yield model
        return
    layers = adapter.layers(model)
    found = {n: (merged_weight(layer, n), merged_bias(layer, n)) for n, layer in layers.items()}
    originals = {name: (layer.weight, layer.bias) for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            weight, bias = found.pop(name)
            layer.base_layer.weight = nn.Parameter(weight, requires_grad=False)
            if bias is not None:
                layer.base_layer.bias = nn.Parameter(bias, requires_grad=False)
            model.set_submodule(name, layer.base_layer)
        with merged_extra_modules(model):
            yield model
    finally:
        for name, layer in layers.items():
            layer.base_layer.weight, bias = originals[name]
            layer.base_layer.bias = cast(nn.Parameter, bias)
            model.set_submodule(name, layer)
