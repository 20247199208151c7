"""A run that has nothing left to train: continued, it changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from peft_lightning.messages import UserError
from peft_lightning.training.checkpoint_io import STATE_FILE
from peft_lightning.training.run_identity import read_facts
from peft_lightning.training.saved_state import read_state


class FinishedRun(Callback):
    """Ends a ``fit`` that continues from the end of a finished run before it writes anything.

    Lightning would start and end such a run: its files, such as ``summary.json`` and
    ``config.yaml``, would be those of a run without a step.
    """

    def __init__(self) -> None:
        self._loggers: list[Any] = []

    def on_load_checkpoint(
        self, trainer: Any, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let Lightning count the last epoch as over if it is, so that it starts no loop."""
        if trainer.state.fn != "fit" or not is_finished(trainer, checkpoint):
            return
        self._loggers, trainer.loggers = trainer.loggers, []
        current = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
        if trainer.max_epochs not in (None, -1):
            current["processed"] = max(current["processed"], trainer.max_epochs)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._loggers:
            trainer.loggers, self._loggers = self._loggers, []


def finished_step(trainer: Any, checkpoint: str | None) -> int | None:
    """Return the step that a checkpoint is of if ``fit`` would find nothing left to do, else None.

    Args:
        trainer: That would continue from it.
        checkpoint: Its folder; None for a run that starts from the beginning.
    """
    if checkpoint is None or not (Path(checkpoint) / STATE_FILE).is_file():
        return None
    try:
        state = read_state(Path(checkpoint) / STATE_FILE)
    except UserError:  # which the run itself will meet, unless it is told to trust the file
        return None
    return int(state["global_step"]) if is_finished(trainer, state) else None


def is_finished(trainer: Any, checkpoint: dict[str, Any]) -> bool:
    """Whether no batch and no validation is left, with the limits that are configured now.

    A run that was stopped behind its last step still has its end to record.
    """
    summary = read_facts(Path(trainer.default_root_dir) / "summary.json")
    if summary.get("status") != "finished" or "loops" not in checkpoint:
        return False
    loop = checkpoint["loops"]["fit_loop"]
    validated = loop["epoch_loop.val_loop.batch_progress"]["total"]
    if validated["started"] > validated["processed"]:
        return False
    if 0 < trainer.max_steps <= checkpoint["global_step"]:
        return True
    epochs, batches = (loop[f"{k}_progress"] for k in ("epoch", "epoch_loop.batch"))
    over, current = epochs["current"]["processed"], batches["current"]
    is_over = batches["is_last_batch"] and 0 < current["ready"] == current["processed"]
    return trainer.max_epochs not in (None, -1) and over + is_over >= trainer.max_epochs
