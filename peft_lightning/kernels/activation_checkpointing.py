"""Activation checkpointing (Chen et al. 2016, arXiv:1604.06174) that works on a frozen base."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from peft_lightning.kernels.decoder_layers import decoder_layers
from peft_lightning.messages import UserError


def recompute_activations(model: nn.Module) -> None:
    """Make every decoder layer of ``model`` recompute its activations in the backward pass.

    transformers' own switch is silently off in eval mode, which a frozen base is in, and its
    training mode would switch the base's dropout on. This one depends on neither.

    Args:
        model: Its decoder layers are changed in place.

    Raises:
        UserError: If it has no layer that transformers can checkpoint.
    """
    layers = decoder_layers(model)
    if not layers:
        raise UserError(
            f"{type(model).__name__} has no layers that can recompute their activations: "
            "set activation_checkpointing to false"
        )
    for layer in layers:
        layer.forward = partial(_recomputed, layer.forward)


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled() or kwargs.get("past_key_values") is not None:
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
