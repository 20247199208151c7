"""LossLog: the losses of training and evaluation, logged whatever hooks a module overrides."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden

from peft_lightning.training.cluster.fsdp2 import total_norm
from peft_lightning.training.cluster.preemption import StopOnSignal
from peft_lightning.training.labelled_bytes import tokenizer_of_batches
from peft_lightning.training.sanity_checks import SanityChecks


class LossLog(Callback):
    """Logs ``train/loss`` and ``grad_norm`` of each step, and the means of an evaluation.

    It is the first of the callbacks, so that the norm is that of the gradients as they were
    computed: before clipping, and before what other callbacks and the module do to them.

    A checkpoint keeps the values of the last validation: what looks at them at the end of an
    epoch, as ``EarlyStopping`` does, finds them in a resumed run too.
    """

    def __init__(self) -> None:
        self._metrics: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"metrics": self._metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._metrics = state_dict["metrics"]

    def on_train_start(self, trainer: Any, pl_module: L.LightningModule) -> None:
        found = {name: torch.tensor(value) for name, value in self._metrics.items()}
        trainer._logger_connector._callback_metrics.update(found)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        sums = pl_module.step_sums
        norm = total_norm([p.grad for p in pl_module.trainable_parameters() if p.grad is not None])
        sums.norm = None if self._may_change(trainer, pl_module) else norm
        pl_module.log("grad_norm", norm, rank_zero_only=True)
        if not pl_module.automatic_optimization:
            return
        nll, tokens = float(sums.nll), float(sums.tokens)
        pl_module.log("train/loss", nll / (tokens or 1.0), prog_bar=True, rank_zero_only=True)
        SanityChecks.check_step(pl_module, nll, tokens, norm)

    def _may_change(self, trainer: Any, module: Any) -> bool:
        """Whether the gradients may change between here and their clipping."""
        hook = "on_before_optimizer_step"
        others = [c for c in trainer.callbacks if not isinstance(c, LossLog | StopOnSignal)]
        return is_overridden(hook, module, L.LightningModule) or any(
            is_overridden(hook, callback, Callback) for callback in others
        )

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.evaluation.start(tokenizer_of_batches(trainer, pl_module))

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.evaluation.start(tokenizer_of_batches(trainer, pl_module))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.evaluation.log(pl_module, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.evaluation.log(pl_module, "test")

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            metrics = trainer.callback_metrics.items()
            self._metrics = {name: float(value) for name, value in metrics}
