"""Distillation: the adapter learns from the probabilities of a larger model (arXiv:1503.02531).

Run it with ``python -m peft_lightning fit --config examples/experiments/distillation.yaml``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_lightning import CausalLMModule, UserError, load_base_model, load_tokenizer
from peft_lightning.kernels.attention import FLAT_ATTENTION
from peft_lightning.loss import CausalLMLoss


class Distillation(CausalLMModule):
    """Adds to the loss the divergence from a teacher's probabilities at the labelled tokens.

    It is ``(1 - share) * nll + share * temperature^2 * KL(teacher || student)`` a token, where both
    distributions are those of the logits over the temperature. Validation keeps the plain loss.

    Args:
        *args: Those of ``CausalLMModule``.
        teacher: Hub id or folder of a model with the same tokenizer.
        temperature: Above 1 it shows more of what the teacher holds for less likely.
        share: Of the divergence in the loss, in [0, 1].
        **kwargs: Those of ``CausalLMModule``.
    """

    def __init__(
        self,
        *args: Any,
        teacher: str,
        temperature: float = 2.0,
        share: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if temperature <= 0 or not 0 <= share <= 1:
            raise ValueError(
                f"temperature must be above 0 and share in [0, 1], got {temperature} and {share}"
            )
        self.teacher_name, self.temperature, self.share = teacher, temperature, share

    def on_fit_start(self) -> None:
        """Load the teacher, not as a part of the module: it is neither trained nor saved."""
        if load_tokenizer(self.teacher_name).get_vocab() != self.load_tokenizer().get_vocab():
            raise UserError(f"the teacher {self.teacher_name} has another tokenizer than the base")
        model = load_base_model(self.teacher_name, attn_implementation=FLAT_ATTENTION)
        self.teacher = CausalLMLoss(model.to(self.device))

    def nll(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the loss above in training, the plain one in evaluation."""
        if not self.training:
            return super().nll(batch)
        logits, targets = self.labelled_logits(batch)  # (N, V), (N,)
        weights = self.labelled_weights(batch)  # (N,), 1 unless the rows have others
        with torch.no_grad():
            theirs, _ = self.teacher.logits(batch)
        size = min(logits.shape[-1], theirs.shape[-1])  # one may be padded
        ours, theirs = (x[:, :size] / self.temperature for x in (logits, theirs))
        divergence = F.kl_div(
            ours.log_softmax(-1), theirs.log_softmax(-1), reduction="none", log_target=True
        ).sum(-1)
        loss = (1 - self.share) * F.cross_entropy(logits, targets, reduction="none")
        loss += self.share * self.temperature**2 * divergence
        return (weights * loss).sum(), weights.sum()
