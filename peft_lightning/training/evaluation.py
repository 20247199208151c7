"""Token-weighted means over an evaluation: loss, perplexity and accuracy."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchmetrics import MeanMetric


class Evaluation(nn.Module):
    """Gathers the losses of the batches of a validation or a test, over all processes."""

    def __init__(self) -> None:
        super().__init__()
        self.nll, self.correct = MeanMetric(), MeanMetric()

    def update(self, nll: Tensor, tokens: Tensor, correct: Tensor | None) -> None:
        """Add a batch.

        Args:
            nll: Summed loss in nats.
            tokens: Labelled tokens; 0 in a process that has no rows left.
            correct: Tokens that were predicted correctly; None if they were not counted.
        """
        count = max(1, int(tokens))  # a process without rows takes part in the mean all the same
        self.nll.update(nll / count, weight=tokens)
        if correct is not None:
            self.correct.update(correct / count, weight=tokens)

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
