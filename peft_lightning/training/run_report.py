"""RunReport: the page of a run, which is rewritten while it trains."""

from __future__ import annotations

import time
from datetime import datetime
from math import isfinite
from pathlib import Path
from signal import Signals
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from peft_lightning.base_model.quantization import count_numbers
from peft_lightning.files import atomic_text
from peft_lightning.messages import UserError, redacted
from peft_lightning.process.signals import StopSignal
from peft_lightning.reports.run_facts import RunFacts
from peft_lightning.reports.run_page import FINISHED, REPORT_FILE, RUNNING, Moment, run_page
from peft_lightning.reports.run_record import read_run
from peft_lightning.training.logged_hyperparameters import run_hyperparameters
from peft_lightning.training.planned_steps import planned_steps
from peft_lightning.training.step_progress import at_step_boundary
from peft_lightning.training.trained_table import trained_groups

MOST_OF_THE_TIME = 0.01  # of training, spent on writing
MOST_CHARACTERS = 300  # of an error


class RunReport(Callback):
    """Writes ``report.html`` in the run's folder: the page of the run, also while it trains.

    It is written at the start, after a validation, every ``every_seconds`` between, and at the end,
    however training ends. Of the time of training at most a hundredth is spent on it: where writing
    takes long, it is written less often. What keeps it from being written is said once, and ends
    no training. Trial runs (``fast_dev_run``) and ``barebones`` ones write none.

    Args:
        enabled: Whether there is a page at all.
        every_seconds: Shortest time between two writings that no validation asks for.
        num_rows: How many rows of training the page shows; none keeps their text out of it.
    """

    def __init__(
        self, enabled: bool = True, every_seconds: float = 30.0, num_rows: int = 4
    ) -> None:
        for name, value in (("every_seconds", every_seconds), ("num_rows", num_rows)):
            if not value >= 0:
                raise UserError(f"RunReport: {name} must be at least 0, got {value}")
        self.enabled, self.every_seconds, self.num_rows = enabled, every_seconds, num_rows
        self._known = RunFacts()
        self._folder: Path | None = None  # None while nothing is to be written
        self._began = self._written_at = self._cost = 0.0
        self._first_step = 0
        self._has_failed = False

    def on_train_start(self, trainer: Any, pl_module: L.LightningModule) -> None:
        self._folder, self._has_failed = None, False
        is_trial = trainer.fast_dev_run or trainer.barebones
        if not self.enabled or is_trial or not trainer.is_global_zero:
            return
        self._folder = Path(trainer.default_root_dir)
        self._began, self._first_step, self._cost = time.monotonic(), trainer.global_step, 0.0
        self._attempt(lambda folder: self._begin(folder, trainer, pl_module))
        self._write(trainer, RUNNING)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        if self._folder is not None and at_step_boundary(trainer):
            self._write_if_due(trainer, self.every_seconds)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._write_if_due(trainer, 0.0)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer, FINISHED)
        self._folder = None

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._write(trainer, _reason(exception))
        self._folder = None

    def _begin(self, folder: Path, trainer: Any, module: Any) -> None:
        """Keep what the page shows from its start on."""
        steps = planned_steps(trainer)
        example_rows = getattr(trainer.datamodule, "example_rows", None)
        self._known = RunFacts(
            method=module.adapter.peft_type,
            base_model=str(module.base_model_name),
            total_steps=int(steps) if isfinite(steps) else None,
            total_parameters=sum(count_numbers(p) for p in module.parameters()),
            trained=[(g.pattern, g.tensors, g.parameters, g.size) for g in trained_groups(module)],
            options=run_hyperparameters(trainer),
            rows=example_rows(self.num_rows) if example_rows and self.num_rows else [],
        )
        self._known.write(folder)

    def _write_if_due(self, trainer: Any, least_seconds: float) -> None:
        passed = time.monotonic() - self._written_at
        if passed >= max(least_seconds, self._cost / MOST_OF_THE_TIME):
            self._write(trainer, RUNNING)

    def _write(self, trainer: Any, status: str) -> None:
        began = time.monotonic()
        now = Moment(datetime.now(), status, trainer.global_step, self._seconds_left(trainer))
        self._attempt(
            lambda folder: atomic_text(
                folder / REPORT_FILE, run_page(read_run(folder), self._known, now)
            )
        )
        self._written_at = time.monotonic()
        self._cost = self._written_at - began

    def _seconds_left(self, trainer: Any) -> float | None:
        """Return the time of the steps to come: as long as those made, with their validations."""
        made = trainer.global_step - self._first_step
        if not made or self._known.total_steps is None:
            return None
        each = (time.monotonic() - self._began) / made
        return each * max(0, self._known.total_steps - trainer.global_step)

    def _attempt(self, work: Any) -> None:
        """Do something for the page; an error is said once, and training goes on."""
        if self._folder is None:
            return
        try:
            work(self._folder)
        except Exception as error:
            if not self._has_failed:
                reason = error.strerror if isinstance(error, OSError) else error
                rank_zero_info(
                    f"{self._folder / REPORT_FILE} cannot be written: {reason}; training goes on"
                )
            self._has_failed = True


def _reason(exception: BaseException) -> str:
    """Return why training stopped, in a line."""
    if isinstance(exception, StopSignal):
        return f"stopped by {Signals(exception.number).name}"
    lines = redacted(str(exception)).splitlines()
    first = f": {lines[0][:MOST_CHARACTERS]}" if lines else ""
    return f"stopped: {type(exception).__name__}{first}"
