"""A base with the parameters that an adapter's class says are its merged ones, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from peft_lightning.adapters.base import Adapter
from peft_lightning.adapters.lora.reached_layers import left_out, remember_unreached
from peft_lightning.messages import UserError


@contextmanager
def replaced_parameters(adapter: Adapter, model: nn.Module) -> Iterator[None]:
    """Take the adapter out for the block, with its ``merged_parameters`` in place of the base's.

    After the block its tensors are new ones of the same values.
    """
    with torch.no_grad():
        merged = {name: t.clone() for name, t in adapter.merged_parameters(model).items()}
    trained = {name: tensor.clone() for name, tensor in adapter.state_dict(model).items()}
    unreached = left_out(model)
    adapter.detach(model)
    try:
        originals = _checked(merged, model)
        made: dict[int, nn.Parameter] = {}  # by the original: what is tied stays so
        try:
            for name, parameter in originals.items():
                new = merged[name].to(parameter.dtype).contiguous()
                if not new.isfinite().all():
                    raise UserError(
                        f"cannot merge into {name}: a value is not finite in {new.dtype}"
                    )
                put = made.setdefault(id(parameter), nn.Parameter(new, requires_grad=False))
                _put(model, name, put)
            yield
        finally:
            for name, parameter in originals.items():
                _put(model, name, parameter)
    finally:
        remember_unreached(model, unreached)
        adapter.attach(model, initialise=False)
        adapter.load_state_dict(model, trained)


def _checked(merged: dict[str, Tensor], model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are to be replaced, by name; raise UserError if one cannot be."""
    every = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in merged.items():
        if name not in every or every[name].shape != tensor.shape:
            there = f"one of shape {tuple(every[name].shape)}" if name in every else "none"
            raise UserError(f"cannot merge {name}, {tuple(tensor.shape)}: the base has {there}")
        if not every[name].is_floating_point():
            raise UserError(
                f"cannot merge into {name}: merge into a base that is not quantised, got "
                f"{every[name].dtype}"
            )
        if tied := [n for n, p in every.items() if p is every[name] and n not in merged]:
            raise UserError(
                f"cannot merge into {name}: its weight is also that of {tied[0]}, which the "
                "adapter leaves alone or changes otherwise; serve the adapter unmerged"
            )
    return {name: every[name] for name in merged}


def _put(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    layer, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(layer), leaf, parameter)
