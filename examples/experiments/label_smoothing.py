"""Label smoothing: no token is taken for certain, in a subclass of ``CausalLMModule``.

Run it with ``python -m peft_lightning fit --config examples/experiments/label_smoothing.yaml``.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from peft_lightning import CausalLMModule


class LabelSmoothing(CausalLMModule):
    """Moves part of each target's probability to all tokens alike (arXiv:1512.00567, section 7).

    ``nll`` returns a sum and a count, so the mean is over the tokens of a whole optimizer step,
    however they are spread over micro-batches and processes. Validation keeps the plain loss, so
    that runs with different smoothing can be compared.

    Args:
        *args: Those of ``CausalLMModule``.
        smoothing: Probability that is moved, in [0, 1).
        **kwargs: Those of ``CausalLMModule``.
    """

    def __init__(self, *args: Any, smoothing: float = 0.1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), got {smoothing}")
        self.smoothing = smoothing

    def nll(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the smoothed loss in training, the plain one in evaluation."""
        if not self.training:
            return super().nll(batch)
        logits, targets = self.labelled_logits(batch)  # (N, V), (N,)
        weights = self.labelled_weights(batch)  # (N,), 1 unless the rows have others
        loss = F.cross_entropy(logits, targets, reduction="none", label_smoothing=self.smoothing)
        return (weights * loss).sum(), weights.sum()
