"""DPO: learns which of two answers is preferred (arXiv:2305.18290), with the base as reference.

Run it with ``python -m peft_lightning fit --config examples/experiments/dpo.yaml``.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torchmetrics import MeanMetric

from peft_lightning import CausalLMModule, SFTDataModule, UserError

SIDES = ("chosen", "rejected")


class DPO(CausalLMModule):
    """Raises the odds of the chosen answer over the rejected one, relative to the base.

    The loss of a pair is ``-log sigmoid(beta * (r(chosen) - r(rejected)))``, equation 7, where
    ``r`` is how much likelier the adapter has made an answer than the base holds it, in nats. The
    base is this model with its adapter disabled: no second model is held. The mean is over all
    pairs of an optimizer step, however they are spread over micro-batches and processes.

    Args:
        *args: Those of ``CausalLMModule``.
        beta: How closely the adapter stays with the base; the larger, the closer.
        **kwargs: Those of ``CausalLMModule``.

    Raises:
        UserError: If the adapter adds tokens, which the base does not know.
    """

    def __init__(self, *args: Any, beta: float = 0.1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if getattr(self.adapter, "new_tokens", None):
            raise UserError(
                "model.adapter has new_tokens, which the base has no embeddings of, and DPO "
                "compares with the base: leave them out"
            )
        self.beta = beta
        self.preferred = MeanMetric()

    def nll(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the summed loss of the pairs of a batch, and their number."""
        ours = [self.log_probs(batch[side]) for side in SIDES]
        with torch.no_grad(), self.disable_adapter():
            of_base = [self.log_probs(batch[side]) for side in SIDES]
        chosen, rejected = (mine - base for mine, base in zip(ours, of_base, strict=True))
        margin = self.beta * (chosen - rejected)  # (pairs,)
        if not self.training:
            self.preferred.update(margin > 0)
            self.log("val/preferred", self.preferred, on_step=False, on_epoch=True)
        return -F.logsigmoid(margin).sum(), torch.tensor(len(margin), device=margin.device)

    def log_probs(self, batch: dict[str, Any]) -> Tensor:
        """Return the log-probability of each answer of a batch, (answers,), in nats."""
        logits, targets = self.labelled_logits(batch)  # (N, V), (N,)
        of_tokens = -F.cross_entropy(logits, targets, reduction="none")
        _, answers = self.labelled_sequences(batch).unique(return_inverse=True)
        number = int(answers.max()) + 1 if len(answers) else 0
        return of_tokens.new_zeros(number).index_add(0, answers, of_tokens)


class PreferenceData(L.LightningDataModule):
    """Rows of a prompt, a chosen and a rejected answer, as two data modules in step.

    Batches are ``{"chosen": batch, "rejected": batch}``, of the same rows in the same order.

    Args:
        train: Path of the rows, with the columns ``prompt``, ``chosen`` and ``rejected``.
        val: Path of the validation rows; without, a part of ``train`` is held out.
        batch_size: Pairs per batch and device.
        max_length: Maximum tokens of a prompt with an answer; a longer one is an error.
        **options: Further ones of ``SFTDataModule``.
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        batch_size: int = 4,
        max_length: int = 1024,
        **options: Any,
    ) -> None:
        super().__init__()
        self.sides = {
            side: SFTDataModule(
                train=train,
                val=val,
                columns={"prompt": "prompt", "completion": side},
                batch_size=batch_size,
                max_length=max_length,
                truncation="error",  # a row that only one side leaves out would part the two
                **options,
            )
            for side in SIDES
        }

    def setup(self, stage: str) -> None:
        """Tokenize both sides; the prompts of the adapter are those of the chosen one."""
        for data in self.sides.values():
            data.trainer = self.trainer
            data.setup(stage)
        data = self.sides["chosen"]
        self.tokenizer, self.prompt_format = data.tokenizer, data.prompt_format

    def train_dataloader(self) -> CombinedLoader:
        """Return pairs of batches; both loaders end together."""
        loaders = {side: data.train_dataloader() for side, data in self.sides.items()}
        return CombinedLoader(loaders, "min_size")

    def val_dataloader(self) -> CombinedLoader:
        """Return pairs of batches of the validation rows."""
        loaders = {side: data.val_dataloader() for side, data in self.sides.items()}
        return CombinedLoader(loaders, "min_size")

    def state_dict(self) -> dict[str, Any]:
        """Return where both are in their rows, for a run that is resumed."""
        return {side: data.state_dict() for side, data in self.sides.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there."""
        for side, data in self.sides.items():
            data.load_state_dict(state[side])
