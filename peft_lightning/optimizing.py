"""The optimizer of a run: the one that was configured, or AdamW at the adapter's own rate."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer


def build_optimizer(module: Any) -> Optimizer:
    """Return the optimizer of a ``CausalLMModule`` over all that is trainable.

    Raises:
        ValueError: If nothing is trainable, or a fused optimizer meets gradient clipping.
    """
    parameters = module.trainable_parameters()
    if not parameters:
        raise ValueError(
            f"nothing is trainable: {module.adapter} left no parameter that requires a gradient"
        )
    clip = module.trainer.gradient_clip_val
    if module.optimizer is None:
        # with 16-mixed, a fused step takes the loss's scale off only after the norm is logged
        scaled = getattr(module.trainer.precision_plugin, "scaler", None) is not None
        optimizer: Optimizer = torch.optim.AdamW(
            parameters, lr=module.learning_rate, weight_decay=0.0, fused=not (clip or scaled)
        )
    else:
        optimizer = module.optimizer(parameters)
    if clip and any(group.get("fused") for group in optimizer.param_groups):
        raise ValueError(
            "a fused optimizer cannot be combined with gradient_clip_val: leave out "
            "fused: true or gradient_clip_val"
        )
    return optimizer


def own_options(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return each group's options but the learning rate, which is the schedule's."""
    return [
        {k: v for k, v in group.items() if k not in ("params", "lr", "initial_lr")}
        for group in optimizer.param_groups
    ]
