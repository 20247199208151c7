"""What a finished fit leaves its user with."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L

from peft_lightning.process.progress_format import clock
from peft_lightning.training.summary import Summary


def run_ended(trainer: L.Trainer) -> str:
    """Return what a finished ``fit`` leaves its user with: how far, how well, where, what next."""
    summary = next(c for c in trainer.callbacks if isinstance(c, Summary))  # type: ignore[attr-defined]
    steps = trainer.global_step
    if steps == summary.first_step:
        limit = "max_steps" if 0 < trainer.max_steps <= steps else "max_epochs"
        return f"nothing was left to train after step {steps:,}: raise trainer.{limit} to go on"
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
