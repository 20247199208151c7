"""How many optimizer steps a run will make, from the trainer's limits and its training batches."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch.callbacks import GradientAccumulationScheduler


def planned_steps(trainer: Any) -> float:
    """Return the optimizer steps of the whole run; infinite if nothing says how many.

    Lightning's ``estimated_stepping_batches`` is -1 for a loader without a length, and knows one
    ``accumulate_grad_batches`` for all epochs.

    Args:
        trainer: With its data; the training loader is made if there is none yet.
    """
    if trainer.max_epochs not in (-1, None) and trainer.train_dataloader is None:
        trainer.fit_loop.setup_data()
    return steps_of(trainer, trainer.num_training_batches)


def steps_of(trainer: Any, batches: float) -> float:
    """Return the optimizer steps of the whole run; infinite if nothing says how many.

    Args:
        trainer: Its limits and its accumulation of gradients.
        batches: Of each process in an epoch, ``limit_train_batches`` included.
    """
    most = math.inf if trainer.max_steps == -1 else trainer.max_steps
    if trainer.max_epochs in (-1, None) or batches == math.inf:
        return most
    factors = sorted(accumulation(trainer).items())
    last = max(trainer.max_epochs, 1)
    ends = [min(epoch, last) for epoch, _ in factors[1:]] + [last]
    steps = 0
    for (begin, factor), end in zip(factors, ends, strict=True):
        of_epoch = math.ceil(batches / factor)  # the last step of an epoch may be of fewer batches
        steps += of_epoch * max(0, end - begin)
    return min(most, steps)


def accumulation(trainer: Any) -> dict[int, int]:
    """Return the micro-batches of a step, by the epoch from which on they are so many."""
    for callback in trainer.callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            return callback.scheduling
    return {0: trainer.accumulate_grad_batches}
