"""The base of a module in training, without its adapter, for what is measured before training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from peft_lightning.adapters import disable_adapter
from peft_lightning.training.cluster.strategies import FSDP2Strategy


def why_not_alone(trainer: Any, module: Any) -> str | None:
    """Return why the base cannot be asked alone; None if it can, before training."""
    if isinstance(trainer.strategy, FSDP2Strategy):
        return "strategy fsdp2 shares out its layers together with the adapter's"
    if module.adapter.trains_base and module.init_from is not None:
        return "model.init_from has replaced its weights"
    return None


@contextmanager
def base_alone(module: Any) -> Iterator[None]:
    """Let a module compute what its base does, before training; no generator of numbers moves.

    A base that is trained itself is its own before the first step.
    """
    devices = [module.device] if module.device.type == "cuda" else []
    whole = nullcontext() if module.adapter.trains_base else disable_adapter(module.model)
    with torch.random.fork_rng(devices), whole:
        yield
