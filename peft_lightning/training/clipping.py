"""Gradient clipping, in the same pass over the gradients as the division by a step's tokens."""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric.utilities.types import Optimizable
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from peft_lightning.messages import UserError
from peft_lightning.training.cluster.fsdp2 import total_norm

EPSILON = 1e-6  # that of torch.nn.utils.clip_grad_norm_


def require_clip_val(value: float | None) -> None:
    """Raise UserError if ``trainer.gradient_clip_val`` is negative or no number.

    Lightning takes a negative one for no clipping, without a word.
    """
    if value is not None and not value >= 0:
        raise UserError(
            f"trainer.gradient_clip_val must be the largest norm of the gradient, 0 or more, got "
            f"{value}; null or 0 is no clipping"
        )


def clips_with_rescale(module: Any, base: type) -> bool:
    """Whether ``rescale`` clips too, so that nothing is left for ``configure_gradient_clipping``.

    Only the norm is clipped so, and only where no code of a subclass runs between the two: it
    would see clipped gradients, or change the norm.

    Args:
        module: The ``CausalLMModule`` that trains.
        base: ``CausalLMModule`` itself.
    """
    return (
        bool(module.trainer.gradient_clip_val)
        and not _by_value(module.trainer.gradient_clip_algorithm)
        and not has_own_clipping(module, base)
        and not is_overridden("on_before_optimizer_step", module, base)
    )


def has_own_clipping(module: Any, base: type) -> bool:
    """Whether a subclass of ``base`` overrides ``configure_gradient_clipping``."""
    return is_overridden("configure_gradient_clipping", module, base)


def rescale(grads: list[Tensor], scale: float, clip_val: float | None) -> Tensor:
    """Multiply gradients by ``scale``, then clip their norm, in one pass.

    Args:
        grads: All gradients of a step, sharded or not; changed in place.
        scale: Makes them those of the loss's mean.
        clip_val: Largest norm of the result; None for no clipping.

    Returns:
        The norm of the scaled gradients before clipping, a scalar.
    """
    norm = total_norm(grads) * scale
    factor = scale if clip_val is None else scale * _coefficient(norm, clip_val)
    torch._foreach_mul_(grads, factor)
    return norm


def clip(optimizer: Optimizable, clip_val: float | None, algorithm: Any) -> None:
    """Clip the gradients of an optimizer's parameters, in place.

    As ``LightningModule.clip_gradients``, and also for a fused optimizer: in mixed precision
    Lightning refuses every one, though only a loss scaler stands in its way.

    Args:
        optimizer: Its parameters have the gradients.
        clip_val: Largest norm, or absolute value; None or 0 for no clipping.
        algorithm: "norm" or "value"; None for "norm".
    """
    if not clip_val:
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if _by_value(algorithm):
        nn.utils.clip_grad_value_(parameters, clip_val)
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    torch._foreach_mul_(grads, _coefficient(total_norm(grads), clip_val))


def _coefficient(norm: Tensor, clip_val: float) -> float:
    quotient = clip_val / (norm.item() + EPSILON)
    return 1.0 if quotient > 1 else quotient  # a norm of nan gives nan, as in torch


def _by_value(algorithm: Any) -> bool:
    return str(getattr(algorithm, "value", algorithm)).lower() == "value"
