"""The gradient of each virtual token: which of them still learn, and which have never begun."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from peft_lightning.adapters.prompts.encoders import ENCODER
from peft_lightning.training.cluster.fsdp2 import gather_full

VECTOR = "virtual_token_grad_norms"  # in history.jsonl


def log_virtual_tokens(module: Any) -> Tensor | None:
    """Log the mean and the largest of the gradient norms of a prompt's virtual tokens.

    All processes must call it. The gradients are those before clipping.

    Args:
        module: The ``CausalLMModule`` that is trained, before an optimizer step.

    Returns:
        The norm of the gradient of each virtual token, (n,); None if the adapter has none. That of
        prefix tuning is over the keys and values of all layers; with an encoder it is that of the
        row that the encoder makes the token of.
    """
    prompt = getattr(module.model, "prompt_embeddings", None)
    if prompt is None and (encoder := getattr(module.model, ENCODER, None)) is not None:
        prompt = encoder.embedding.weight
    if prompt is None or prompt.grad is None:
        return None
    norms: Tensor = gather_full(prompt.grad).detach().flatten(1).norm(dim=1)
    values = {"mean": norms.mean(), "max": norms.max()}
    module.log_dict(
        {f"grad_norm/virtual_tokens_{name}": value for name, value in values.items()},
        rank_zero_only=True,
    )
    return norms
