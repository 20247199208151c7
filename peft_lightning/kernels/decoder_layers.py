"""The decoder layers of a model of transformers, of any architecture."""

from __future__ import annotations

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the decoder layers in their order; none for a model that is built of other modules.

    Args:
        model: A causal LM of transformers, or a module that contains one.
    """
    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
