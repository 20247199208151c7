"""What the end of a training tells its user."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from peft_lightning.process.progress_format import clock
from peft_lightning.training.summary import Summary


class EndNotice(Callback):
    """Says why a training ended early, and that its last steps were not validated."""

    def __init__(self) -> None:
        self._validated = 0

    def on_train_start(self, trainer: Any, pl_module: L.LightningModule) -> None:
        self._validated = trainer.global_step

    def on_validation_end(self, trainer: Any, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._validated = trainer.global_step

    def on_train_end(self, trainer: Any, pl_module: L.LightningModule) -> None:
        for callback in trainer.early_stopping_callbacks:
            if callback.stopping_reason_message:
                rank_zero_info(
                    f"stopped early, after step {trainer.global_step:,}: "
                    f"{callback.stopping_reason_message}"
                )
        steps = trainer.global_step - self._validated
        if steps > 0 and trainer.enable_validation and sum(trainer.num_val_batches or [0]):
            rank_zero_info(
                f"the last {steps:,} steps were not validated, so best.ckpt may not be the best: "
                f"trainer.val_check_interval is {_interval(trainer)}"
            )


def nothing_left(trainer: L.Trainer, steps: int) -> str:
    """Return what a ``fit`` says that continues a run which has made all its ``steps``."""
    limit = "max_steps" if 0 < trainer.max_steps <= steps else "max_epochs"
    return f"nothing left to do after step {steps:,}: raise trainer.{limit} to go on"


def _interval(trainer: Any) -> str:
    """Return after what a trainer validates; Lightning keeps a time elsewhere."""
    if (seconds := trainer._val_check_time_interval) is not None:
        return f"a time, {clock(seconds)}"
    return f"{trainer.val_check_interval}, of {trainer.num_training_batches} batches an epoch"


def run_ended(trainer: L.Trainer) -> str:
    """Return what a finished ``fit`` leaves its user with: how far, how well, where, what next."""
    summary = next(c for c in trainer.callbacks if isinstance(c, Summary))  # type: ignore[attr-defined]
    steps = trainer.global_step
    if steps == summary.first_step:
        return nothing_left(trainer, steps)
    seconds = summary.seconds()
    spent = clock(seconds["training"] + seconds["validation"])
    loss = trainer.callback_metrics.get("train/loss")
    line = f"trained {steps - summary.first_step:,} steps in {spent}"
    line += "" if loss is None else f"; train/loss {float(loss):.4g} at the last"
    checkpoints: Any = trainer.checkpoint_callback
    best, last = (getattr(checkpoints, f"{k}_model_path", "") for k in ("best", "last"))
    if best and checkpoints.best_model_score is not None:
        line += f"; {checkpoints.monitor} {float(checkpoints.best_model_score):.4g} at best"
    if not (folder := best or last):
        return line
    with suppress(ValueError):
        folder = str(Path(folder).relative_to(Path.cwd().resolve()))
    ask = f"python -m peft_lightning generate --ckpt_path {shlex.quote(folder)} --prompt '...'"
    return f"{line}\nthe result is in {folder}; to try it:\n  {ask}"
