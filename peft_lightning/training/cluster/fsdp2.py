"""Models sharded over processes with FSDP2: the plan, and tensors whole again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from peft_lightning.kernels.decoder_layers import decoder_layers
from peft_lightning.messages import UserError


def shard(module: nn.Module, mesh: DeviceMesh, methods: tuple[str, ...]) -> None:
    """Give each process its part of every decoder layer and of every trained tensor.

    A layer is gathered when it computes, forward and backward, and parted again after it; what it
    computes by is plain tensors. Embeddings, head and norm outside the layers stay whole in every
    process where they are frozen: they are needed through all of a step. Where they are trained,
    as in full fine-tuning, they are gathered for a step.

    Gradients of trained tensors are averaged over processes, in their own dtype, and parted too.

    Args:
        module: Holds a model of transformers; changed in place, its layers move to the mesh's
            device one by one.
        mesh: One-dimensional.
        methods: Names of those of ``module`` that use the model.

    Raises:
        UserError: If the model has no decoder layers, or quantised ones.
    """
    layers = decoder_layers(module)
    if not layers:
        raise UserError("the model has no decoder layers that can be sharded: use strategy ddp")
    inside = {p for layer in layers for p in layer.parameters()}
    if any(not p.is_floating_point() for p in inside):
        raise UserError("quantised weights cannot be sharded: use strategy ddp, or a plain base")
    for layer in reversed(layers):  # those inside others first
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    whole = {p for p in module.parameters() if p not in inside and not p.requires_grad}
    fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_force_sum_reduction_for_comms(True)  # gloo knows no average
    for name in methods:
        register_fsdp_forward_method(module, name)


def gather_full(value: Any) -> Any:
    """Return a sharded tensor as a whole one on the CPU, on every process; all must call it."""
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def shard_like(value: Any, like: Tensor) -> Any:
    """Return this process's part of ``value``, whole everywhere, if ``like`` is sharded so."""
    if not (isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape):
        return value
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def total_norm(tensors: list[Tensor]) -> Tensor:
    """Return the norm of all ``tensors`` together, sharded or not; all processes must call it."""
    norm = nn.utils.get_total_norm(tensors)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def fingerprint(tensor: Tensor) -> Tensor:
    """Return two float64 sums of ``tensor``, which any real update changes."""
    with torch.no_grad():
        wide = tensor.double()
        sums = [wide.sum(), wide.square().sum()]
        return torch.stack([s.full_tensor() if isinstance(s, DTensor) else s for s in sums])
