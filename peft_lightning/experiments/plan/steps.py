"""What the training loop will do: steps, epochs, batches and validations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from peft_lightning.data.batching import BatchPlan
from peft_lightning.data.split import Split
from peft_lightning.training.checkpoint import AdapterCheckpoint
from peft_lightning.training.planned_steps import accumulation, steps_of


@dataclass(frozen=True)
class StepFacts:
    """What the training loop will do.

    Args:
        steps: Optimizer steps of the whole run; infinite if only time limits it.
        epochs: Epochs, a part of one included; infinite if nothing says how many.
        batches: Batches of each process in an epoch.
        accumulate: Batches of an optimizer step of each process, in the first epoch.
        processes: Processes that train together.
        batch_tokens: Mean tokens of a batch; None for data of a user's own class.
        largest_batch: Tokens of the largest batch of the first epoch, padding included.
        validations: Validations of the whole run.
        validation_batches: Batches of each, of each process.
        max_seconds: ``trainer.max_time``; None without.
    """

    steps: float
    epochs: float
    batches: float
    accumulate: int
    processes: int
    batch_tokens: float | None
    largest_batch: int | None
    validations: int
    validation_batches: int
    max_seconds: float | None = None

    @property
    def step_tokens(self) -> float | None:
        """Mean tokens of an optimizer step, over all processes."""
        if self.batch_tokens is None or not self.batches:
            return None
        of_epoch = math.ceil(self.batches / self.accumulate)
        return self.batch_tokens * self.batches * self.processes / of_epoch


def step_facts(
    trainer: Any, train: Split | None, plan: BatchPlan | None, processes: int
) -> StepFacts:
    """Return what the training loop will do.

    Args:
        trainer: In one process, with its loaders set up.
        train: The training rows; None for data of a user's own class.
        plan: Their batches in one process.
        processes: Those of the real run.
    """
    batches: float = trainer.num_training_batches
    if plan is not None and processes > 1:
        plan = plan.with_batching(plan.batch_size, processes)
        batches = _limited(trainer.limit_train_batches, len(plan) // processes)
    steps = steps_of(trainer, batches)
    factor = next(iter(accumulation(trainer).values()))
    of_epoch = math.ceil(batches / factor) if math.isfinite(batches) and batches else math.inf
    tokens = largest = None
    if plan is not None and train is not None:
        used = plan.batches(0)[: int(min(len(plan), batches * processes))]
        each = [batch_tokens(rows, train, plan.padded) for rows in used]
        tokens, largest = sum(each) / max(1, len(each)), max(each, default=0)
    of_validation = sum(b for b in trainer.num_val_batches if math.isfinite(b))
    validations = _validations(trainer, steps, of_epoch, batches) if of_validation else 0
    limit = next((c for c in trainer.callbacks if type(c).__name__ == "Timer"), None)
    return StepFacts(
        steps,
        steps / of_epoch if math.isfinite(of_epoch) else math.inf,
        batches,
        factor,
        processes,
        tokens,
        largest,
        validations,
        math.ceil(of_validation / processes),
        max_seconds=None if limit is None else limit.time_remaining(),
    )


def batch_tokens(rows: Any, split: Split, padded: bool) -> int:
    """Return the tokens of a batch of these rows, padding included."""
    lengths = split.lengths[rows]
    return int(len(lengths) * lengths.max(initial=0)) if padded else int(lengths.sum())


def _limited(limit: float | int | None, batches: int) -> int:
    if limit is None:
        return batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def _validations(trainer: Any, steps: float, of_epoch: float, batches: float) -> int:
    """Return how often a run validates, the end in the middle of an epoch included."""
    if not math.isfinite(steps):
        return 1
    every_epochs, every = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if every is None or trainer._val_check_time_interval is not None:
        return 1
    saves = any(isinstance(c, AdapterCheckpoint) for c in trainer.callbacks)  # validates the end
    factor = next(iter(accumulation(trainer).values()))
    made = min(steps * factor, steps / of_epoch * batches) if math.isfinite(of_epoch) else steps
    if every_epochs is None:
        found, rest = divmod(made, every)
    else:
        whole, part = divmod(made, batches)
        in_epoch = math.floor(batches / every) if math.isfinite(every) else 1
        found = math.floor(whole / every_epochs) * in_epoch
        due = (whole + 1) % every_epochs == 0
        found += math.floor(part / every) if due and math.isfinite(every) else 0
        rest = part % every if math.isfinite(every) else part
        rest = rest if every_epochs == 1 or due else 0
    return int(found) + (1 if rest and saves else 0)


def plan_of_batches(datamodule: Any) -> BatchPlan | None:
    """Return which rows form which batch; None for data of a user's own class."""
    return getattr(getattr(datamodule, "_position", None), "plan", None)
