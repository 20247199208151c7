"""MeasureSteps: chooses a few batches of a run, times them, and stops it."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler

from peft_lightning.data.loader import BatchLoader
from peft_lightning.experiments.plan.disk import checkpoints_kept, folder_bytes
from peft_lightning.experiments.plan.facts import ParameterFacts, highest_rate, parameter_facts
from peft_lightning.experiments.plan.measured import Measured, choose, resident
from peft_lightning.experiments.plan.steps import StepFacts, plan_of_batches, step_facts
from peft_lightning.process.progress import Progress, seconds_since_start, seconds_spent
from peft_lightning.training.batch_size import count_tokens
from peft_lightning.training.step_progress import at_step_boundary
from peft_lightning.training.throughput import peak_memory

MOST_BATCHES, LEAST_BATCHES = 16, 5
ENOUGH_SECONDS = 8.0  # of timed batches, after which no more than LEAST_BATCHES are run
VAL_BATCHES = 4


class MeasureSteps(Callback):
    """Chooses the batches that are run, times them, and stops the run.

    Args:
        processes: Those of the real run.
        batches: How many to run; None for as many as a good mean needs.
    """

    def __init__(self, processes: int, batches: int | None) -> None:
        self.processes, self.wanted = processes, batches
        self.measured = Measured()
        self.steps: StepFacts | None = None
        self.parameters: ParameterFacts | None = None
        self.is_done = False
        self._progress = Progress("timing steps:", batches or LEAST_BATCHES, "batches")
        self._start = self._val_start = self._val_batch_start = self._step_start = 0.0
        self._tokens: int | None = None
        self._stepped = self._spent_otherwise = 0.0

    # ---- before the first step -----------------------------------------------------------------

    def on_train_start(self, trainer: Any, pl_module: L.LightningModule) -> None:
        """Take the facts of the real run, then limit it to a few batches."""
        now, device = self.measured, pl_module.device
        now.device = device.type
        now.tokenizing = seconds_spent("tokenizing")
        now.start = max(0.0, seconds_since_start() - now.tokenizing)
        now.loaded, now.load_peak = resident(device), peak_memory(device)
        data = trainer.datamodule
        if (
            trainer.enable_validation and trainer.val_dataloaders is None
        ):  # as where the first epoch is not validated
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.setup_data()
            trainer.training = True
        train = getattr(data, "splits", {}).get("train")
        self.steps = step_facts(trainer, train, plan_of_batches(data), self.processes)
        rate = highest_rate(trainer)
        self.parameters = parameter_facts(pl_module, pl_module.model, rate)
        now.checkpoints = checkpoints_kept(
            trainer.callbacks, self.steps.steps, self.steps.validations
        )
        self._limit(trainer)
        loader = trainer.train_dataloader
        if isinstance(loader, BatchLoader) and train is not None:
            chosen = choose(loader.batches(0), train.lengths, self.wanted or MOST_BATCHES)
            loader.select(chosen)
        loaders = trainer.val_dataloaders
        for each in loaders if isinstance(loaders, list) else [loaders]:
            if isinstance(each, BatchLoader):
                batches = each.batches(0)
                if "val" in data.splits and not each.has_sources:  # which are named by place
                    batches = choose(batches, data.splits["val"].lengths, VAL_BATCHES)
                each.select(batches[:VAL_BATCHES])
        self._progress.__enter__()

    def _limit(self, trainer: Any) -> None:
        """Let the run stop early, and validate once, at its end."""
        trainer.fit_loop.min_epochs = trainer.fit_loop.epoch_loop.min_steps = None
        trainer.check_val_every_n_epoch, trainer.val_check_batch = 1, math.inf
        trainer._val_check_time_interval = None
        trainer.num_val_batches[:] = [min(n, VAL_BATCHES) for n in trainer.num_val_batches]
        assert self.steps is not None
        # gradients of the batches before are kept while the largest is run
        trainer.accumulate_grad_batches = min(2, self.steps.accumulate)
        trainer.callbacks = [
            c for c in trainer.callbacks if not isinstance(c, GradientAccumulationScheduler)
        ]
        save = trainer.save_checkpoint

        def timed(*args: Any, **kwargs: Any) -> None:
            start = time.perf_counter()
            save(*args, **kwargs)
            self.measured.saves.append(time.perf_counter() - start)
            self._spent_otherwise += self.measured.saves[-1]

        trainer.save_checkpoint = timed

    # ---- steps ---------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batch_over()
        self._tokens, self._start = count_tokens(batch), time.perf_counter()
        self._step_start = self._stepped = self._spent_otherwise = 0.0

    def on_before_optimizer_step(self, *args: Any) -> None:
        self._step_start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._step_start:
            self._stepped = time.perf_counter() - self._step_start
            self.measured.optimizer.append(self._stepped)
        count = len(self.measured.batches) + 1
        self._progress.update(count)
        spent = time.perf_counter() - self._start + sum(s for _, s in self.measured.batches)
        enough = count >= (self.wanted or MOST_BATCHES)
        if self.wanted is None and count >= LEAST_BATCHES:
            enough = enough or spent > ENOUGH_SECONDS
        if enough and at_step_boundary(trainer):
            trainer.should_stop = True

    def _batch_over(self) -> None:
        """Take the time of the batch before, up to the next thing that begins."""
        if self._tokens is not None:
            spent = time.perf_counter() - self._start - self._stepped - self._spent_otherwise
            self.measured.batches.append((self._tokens, spent))
            self._tokens = None

    # ---- validation and end --------------------------------------------------------------------

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._batch_over()
        self._val_start, self._spent_otherwise = time.perf_counter(), 0.0
        self.measured.val_batches.clear()

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self._val_batch_start = time.perf_counter()

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        spent = time.perf_counter() - self._val_batch_start
        self.measured.val_batches.append((count_tokens(batch), spent))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._batch_over()
        if self._val_start:
            self._validated()

    def _validated(self) -> None:
        spent = time.perf_counter() - self._val_start - self._spent_otherwise
        of_batches = sum(seconds for _, seconds in self.measured.val_batches)
        self.measured.val_rest, self._val_start = max(0.0, spent - of_batches), 0.0

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._batch_over()
        if self._val_start:
            self._validated()
        self._progress.__exit__()
        self.is_done = True
        self._start, self._spent_otherwise = time.perf_counter(), 0.0

    def finish(self, root: Path, device: torch.device) -> Measured:
        """Return what was measured, with what the run has left on disk in ``root``."""
        now = self.measured
        now.end = time.perf_counter() - self._start - self._spent_otherwise
        now.peak = peak_memory(device)
        saved = [folder for folder in root.rglob("*.ckpt") if folder.is_dir()]
        sizes = [folder_bytes(folder) for folder in saved]
        now.checkpoint_bytes = max(sizes, default=0)
        now.log_bytes = folder_bytes(root) - sum(sizes)
        return now
