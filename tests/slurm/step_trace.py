"""A callback that traces what each rank trains, and makes ranks and validations slow.

Delays are seconds in environment variables: STEP_DELAY of every step, and so much more for each
rank behind the first; VALIDATION_DELAY of every validation batch.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback


class StepTrace(Callback):
    """Appends a line for each batch and each finished validation to ``trace.RANK`` of the run."""

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        time.sleep(float(os.environ.get("STEP_DELAY", "0")) * (1 + trainer.global_rank))

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._write(
            trainer,
            epoch=trainer.current_epoch,
            batch=batch_idx,
            ids=int(batch["input_ids"].sum()),
            loss=outputs["loss"].double().item().hex(),
        )

    def on_validation_batch_end(self, trainer: Any, *args: Any) -> None:
        time.sleep(float(os.environ.get("VALIDATION_DELAY", "0")))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._write(trainer, validated=float(trainer.callback_metrics["val/loss"]).hex())

    def _write(self, trainer: Any, **row: Any) -> None:
        file = Path(trainer.default_root_dir) / f"trace.{trainer.global_rank}"
        with file.open("a") as out:
            out.write(json.dumps({"step": trainer.global_step, **row}) + "\n")
