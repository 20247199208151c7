"""The gradient of an optimizer step: that of the mean loss of all its tokens, clipped."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peft_lightning.training import clipping
from peft_lightning.training.sanity_checks import SanityChecks

LOSS_UNIT = 1024.0  # a power of two, so exact: keeps gradients of a sum in float16's range


class StepSums:
    """Losses and tokens of the micro-batches of an optimizer step, summed."""

    def __init__(self) -> None:
        self._nll: Tensor | float = 0.0
        self._tokens: Tensor | float = 0.0

    def add(self, nll: Tensor, tokens: Tensor, batch: dict[str, Any]) -> Tensor:
        """Add a micro-batch and return the loss to call ``backward`` on, a scaled sum.

        Args:
            nll: Summed loss in nats.
            tokens: Labelled tokens, or the sum of their weights.
            batch: The micro-batch.

        Raises:
            UserError: If the loss leaves out the weights of the batch.
        """
        SanityChecks.check_weights(tokens, batch)
        self._nll = self._nll + nll.detach().double()
        self._tokens = self._tokens + torch.as_tensor(tokens).double()
        return nll / LOSS_UNIT

    def reduce(self, trainer: Any, device: torch.device) -> tuple[float, float]:
        """Return loss and tokens of the step over all processes, and begin the next step.

        The tokens are the sum of their weights where they have weights.
        """
        sums = (self._nll, self._tokens)
        totals = torch.stack([torch.as_tensor(x, device=device).double() for x in sums])
        nll, tokens = trainer.strategy.reduce(totals, reduce_op="sum").tolist()
        self._nll, self._tokens = 0.0, 0.0
        return nll, tokens


def finish_gradients(module: Any, base: type) -> None:
    """Divide the gradients by the tokens of the step, clip them, and log loss and norm.

    Tokens with weights count by them: the divisor is the sum of the weights. Lightning has divided
    the sum by the micro-batches of a step, and DDP by the ranks; a mean per micro-batch would weigh
    tokens of short micro-batches more (Lightning issue 20350).

    Args:
        module: The ``CausalLMModule`` that trains, between backward pass and optimizer step.
        base: ``CausalLMModule`` itself.

    Raises:
        RunError: If the loss is not finite, or there is nothing to learn from.
    """
    trainer = module.trainer
    nll, tokens = module.step_sums.reduce(trainer, module.device)
    scale = LOSS_UNIT * trainer.accumulate_grad_batches * trainer.world_size / (tokens or 1.0)
    grads = [p.grad for p in module.trainable_parameters() if p.grad is not None]
    clips = clipping.clips_with_rescale(module, base)
    norm = clipping.rescale(grads, scale, trainer.gradient_clip_val if clips else None)
    module.log("train/loss", nll / (tokens or 1.0), prog_bar=True, rank_zero_only=True)
    module.log("grad_norm", norm, rank_zero_only=True)
    SanityChecks.check_step(module, nll, tokens, norm)


def clip_gradients(
    module: Any, base: type, optimizer: Any, clip_val: float | None, algorithm: Any
) -> None:
    """Clip the gradients of an optimizer's parameters, unless ``finish_gradients`` has.

    Args:
        module: The ``CausalLMModule`` that trains.
        base: ``CausalLMModule`` itself.
        optimizer: Its parameters have the gradients.
        clip_val: Largest norm, or absolute value; None or 0 for no clipping.
        algorithm: "norm" or "value"; None for "norm".
    """
    if not clipping.clips_with_rescale(module, base):
        clipping.clip(optimizer, clip_val, algorithm)
