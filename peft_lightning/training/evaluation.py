"""Token-weighted means over an evaluation: loss, perplexity and accuracy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from peft_lightning.training.sanity_checks import SanityChecks


class TokenMean(Metric):
    """A sum over tokens divided by their number, in float64, over all processes.

    torchmetrics' ``MeanMetric`` computes in float32 once it has been moved to a device.
    """

    total: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "tokens"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, total: Tensor, tokens: Tensor) -> None:
        """Add the sum over some tokens, and their number or the sum of their weights."""
        self.total += total
        self.tokens += tokens

    def compute(self) -> Tensor:
        """Return the mean, nan of no tokens."""
        return self.total / self.tokens


class Evaluation(nn.Module):
    """Gathers the losses of the batches of a validation or a test, over all processes."""

    def __init__(self) -> None:
        super().__init__()
        self.nll, self.correct = TokenMean(), TokenMean()

    def update(
        self, nll: Tensor, tokens: Tensor, correct: Tensor | None, batch: dict[str, Any]
    ) -> None:
        """Add a batch.

        Args:
            nll: Summed loss in nats.
            tokens: Labelled tokens, or the sum of their weights; 0 in a process that has no rows
                left, which takes part in the mean all the same.
            correct: Tokens that were predicted correctly, or the sum of their weights; None if
                they were not counted.
            batch: The batch.

        Raises:
            UserError: If the loss leaves out the weights of the batch.
        """
        SanityChecks.check_weights(tokens, batch)
        self.nll.update(nll.detach(), tokens)
        if correct is not None:
            self.correct.update(correct, tokens)

    def log(self, module: Any, stage: str) -> None:
        """Log the means of all batches, and forget these.

        Args:
            module: The ``LightningModule`` that is evaluated.
            stage: val or test, with which the names begin.
        """
        if self.nll.update_called:
            loss = self.nll.compute()
            values = {f"{stage}/loss": loss, f"{stage}/perplexity": loss.exp()}
            if self.correct.update_called:
                values[f"{stage}/accuracy"] = self.correct.compute()
            for name, value in values.items():
                module.log(name, value, prog_bar=name == "val/loss")
        self.nll.reset()
        self.correct.reset()
