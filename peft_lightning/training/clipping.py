"""Gradient clipping, by the norm that is logged: it is computed once for both."""

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


def has_own_clipping(module: Any, base: type) -> bool:
    """Whether a subclass of ``base`` overrides ``configure_gradient_clipping``."""
    return is_overridden("configure_gradient_clipping", module, base)


def clip(
    optimizer: Optimizable, clip_val: float | None, algorithm: Any, norm: Tensor | None = None
) -> None:
    """Clip the gradients of an optimizer's parameters, in place.

    As ``LightningModule.clip_gradients``, and also for a fused optimizer: in mixed precision
    Lightning refuses every one, though only a loss scaler stands in its way.

    Args:
        optimizer: Its parameters have the gradients.
        clip_val: Largest norm, or absolute value; None or 0 for no clipping.
        algorithm: "norm" or "value"; None for "norm".
        norm: That of these gradients, if it is known.
    """
    if not clip_val:
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if str(getattr(algorithm, "value", algorithm)).lower() == "value":
        nn.utils.clip_grad_value_(parameters, clip_val)
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return
    coefficient = clip_val / ((total_norm(grads) if norm is None else norm).item() + EPSILON)
    if not coefficient > 1:  # a norm of nan gives nan, as in torch
        torch._foreach_mul_(grads, coefficient)
