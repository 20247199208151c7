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
from peft_lightning.training.step_progress import at_step_boundary
from peft_lightning.training.virtual_tokens import log_virtual_tokens


class LossLog(Callback):
    """Logs ``train/loss`` and ``grad_norm`` at each step, and the means of an evaluation.

    ``train/loss`` is the mean over all tokens of all processes since the last line of the loggers:
    of ``log_every_n_steps`` steps where it is logged. ``grad_norm`` is the step's.

    It is the first of the callbacks, so that the norm is that of the gradients as they were
    computed: before clipping, and before what other callbacks and the module do to them.

    A checkpoint keeps these sums, and the values of the last validation: what looks at them at the
    end of an epoch, as ``EarlyStopping`` does, finds them in a resumed run too.
    """

    def __init__(self) -> None:
        self._metrics: dict[str, float] = {}
        self._interval = (0.0, 0.0)  # nats and tokens of the whole steps since the last line
        self._step = (0.0, 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"metrics": self._metrics, "interval": self._interval}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._metrics, self._interval = state_dict["metrics"], state_dict["interval"]

    def on_train_start(self, trainer: Any, pl_module: L.LightningModule) -> None:
        self._step = (0.0, 0.0)
        found = {name: torch.tensor(value) for name, value in self._metrics.items()}
        trainer._logger_connector._callback_metrics.update(found)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        sums = pl_module.step_sums
        norm = total_norm([p.grad for p in pl_module.trainable_parameters() if p.grad is not None])
        sums.norm = None if self._may_change(trainer, pl_module) else norm
        pl_module.log("grad_norm", norm, rank_zero_only=True)
        sums.virtual_token_norms = log_virtual_tokens(pl_module)
        if not pl_module.automatic_optimization:
            return
        nll, tokens = float(sums.nll), float(sums.tokens)
        every = trainer.log_every_n_steps
        if every and trainer.global_step % every == 0:  # the step before is logged
            self._interval = (0.0, 0.0)
        self._step = nll, tokens  # an optimizer may compute its step several times
        of_interval, count = self._interval[0] + nll, self._interval[1] + tokens
        mean = of_interval / (count or 1.0)
        pl_module.log("train/loss", mean, prog_bar=True, rank_zero_only=True)
        SanityChecks.check_step(pl_module, nll, tokens, norm)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        if at_step_boundary(trainer):
            (nll, tokens), (more, count) = self._interval, self._step
            self._interval, self._step = (nll + more, tokens + count), (0.0, 0.0)

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
