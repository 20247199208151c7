"""The optimizer of a run: the configured one, or AdamW at the learning rate of the adapter."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch.optim import Optimizer

from peft_lightning.messages import UserError
from peft_lightning.training.clipping import has_own_clipping, require_clip_val
from peft_lightning.training.learning_rate import optimizer_at_its_rate, requested_rate
from peft_lightning.training.lr_schedule import make_schedule
from peft_lightning.training.parameter_groups import check_same_groups, split_groups


def configure_optimizers(module: Any, base: type) -> OptimizerLRSchedulerConfig:
    """Return the optimizer of a ``CausalLMModule`` and its schedule, as Lightning takes them.

    After each step the optimizer frees the gradients, whose memory the next forward pass needs. It
    keeps the configured options, and not those of a checkpoint, when its state is loaded.

    Args:
        module: The module.
        base: ``CausalLMModule`` itself.
    """
    optimizer = build_optimizer(module, has_own_clipping(module, base))
    configured: list[dict[str, Any]] = []

    def note(optimizer: Optimizer, state: Any) -> None:
        check_same_groups(optimizer, state)
        configured[:] = _options(optimizer)  # also of groups that a subclass has added

    def restore(optimizer: Optimizer) -> None:
        for group, options in zip(optimizer.param_groups, configured, strict=True):
            group.update(options)

    optimizer.register_step_post_hook(lambda optimizer, *_: optimizer.zero_grad())
    optimizer.register_load_state_dict_pre_hook(note)
    optimizer.register_load_state_dict_post_hook(restore)
    requested = requested_rate(module)
    schedule = make_schedule(optimizer, module.lr_schedule, module.trainer, requested)
    module.planned_learning_rate = module.learning_rate
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def build_optimizer(module: Any, own_clipping: bool = False) -> Optimizer:
    """Return the optimizer of a ``CausalLMModule`` over all that is trainable.

    Args:
        module: The module.
        own_clipping: Whether a subclass overrides ``configure_gradient_clipping``. It may call
            Lightning's ``clip_gradients``, which refuses fused optimizers in mixed precision.

    Raises:
        UserError: If nothing is trainable, gradient_clip_val is negative, or a fused optimizer
            meets gradient clipping and a loss scaler; or if it and the module are given two
            learning rates.
    """
    parameters = module.trainable_parameters()
    if not parameters:
        raise UserError(
            f"nothing is trainable: {module.adapter} left no parameter that requires a gradient"
        )
    clip = module.trainer.gradient_clip_val
    require_clip_val(clip)
    # with 16-mixed, a fused step takes the loss's scale off only after the norm is known
    scaled = getattr(module.trainer.precision_plugin, "scaler", None) is not None
    if module.optimizer is None:
        fused = not (scaled or (clip and own_clipping))
        optimizer: Optimizer = torch.optim.AdamW(
            parameters, lr=module.learning_rate, weight_decay=0.0, fused=fused
        )
    else:
        optimizer = optimizer_at_its_rate(module, parameters)
    if clip and scaled and any(group.get("fused") for group in optimizer.param_groups):
        raise UserError(
            "a fused optimizer cannot be combined with gradient_clip_val in precision "
            f"{module.trainer.precision}, whose loss scale it takes off after clipping: leave out "
            "fused: true or gradient_clip_val"
        )
    split_groups(optimizer, module, module.parameter_groups)
    return optimizer


def _options(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the options of each group except the learning rate, which the schedule sets."""
    return [
        {k: v for k, v in group.items() if k not in ("params", "lr", "initial_lr")}
        for group in optimizer.param_groups
    ]
