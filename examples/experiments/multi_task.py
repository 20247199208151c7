"""Multi-task training: the tokens of each task weigh as much in the loss as you say.

Run it with ``python -m peft_lightning fit --config examples/experiments/multi_task.yaml``.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from peft_lightning import CausalLMModule, UserError


class MultiTask(CausalLMModule):
    """Weighs the losses of several sources: ``sum_k w_k nll_k / sum_k w_k tokens_k``.

    A source is named by the stem of its file. ``data.name_sources: true`` lets batches say which
    of their rows are whose. Validation keeps the plain loss, of each source.

    Args:
        *args: Those of ``CausalLMModule``.
        task_weights: The weight of the tokens of each source, by its name.
        **kwargs: Those of ``CausalLMModule``.
    """

    def __init__(self, *args: Any, task_weights: dict[str, float], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.task_weights = task_weights

    def nll(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the weighted loss in training, the plain one in evaluation."""
        if not self.training:
            return super().nll(batch)
        if "sources" not in batch:
            raise UserError("batches do not name their sources: set data.name_sources to true")
        if unknown := set(batch["sources"]) - self.task_weights.keys():
            raise UserError(f"task_weights must name {sorted(unknown)}, got {self.task_weights}")
        logits, targets = self.labelled_logits(batch)  # (N, V), (N,)
        of_rows = logits.new_tensor([self.task_weights[name] for name in batch["sources"]])
        weights = of_rows[self.labelled_sequences(batch)] * self.labelled_weights(batch)  # (N,)
        loss = F.cross_entropy(logits, targets, reduction="none")
        return (weights * loss).sum(), weights.sum()
