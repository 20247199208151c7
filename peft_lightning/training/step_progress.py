"""Where Lightning's loops are: between two optimizer steps, or before a validation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L


def at_step_boundary(trainer: L.Trainer) -> bool:
    """Whether the last batch ended with an optimizer step, with no gradient waiting."""
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def validation_follows(trainer: Any) -> bool:
    """Whether a validation comes before the next batch, or training ends with this one.

    Lightning leaves out a validation that was still due when a checkpoint was saved after a batch.
    What is saved within it, by ``AdapterCheckpoint.save_now``, begins with it.
    """
    loop = trainer.fit_loop
    if trainer.global_step == trainer.max_steps:
        return True
    has_rows = not loop.epoch_loop.val_loop.skip  # if not, it is over before it starts
    return has_rows and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def training_ends(trainer: Any) -> bool:
    """Whether training ends with the last batch, and with the validation behind it if there is."""
    loop, epochs = trainer.fit_loop, trainer.max_epochs
    is_last_epoch = epochs != -1 and loop.epoch_progress.current.processed + 1 >= epochs
    is_epochs_end = loop.epoch_loop._num_ready_batches_reached()
    is_over = trainer.should_stop or trainer.global_step == trainer.max_steps
    return is_over or (is_last_epoch and is_epochs_end)


@contextmanager
def within_epoch(trainer: Any) -> Iterator[None]:
    """Let the progress be within the epoch that training ended in, if that has batches left.

    Lightning counts a cut epoch as a whole one: a run that went on would leave them out.
    """
    loop = trainer.fit_loop
    progress = loop.epoch_progress
    if loop.epoch_loop._num_ready_batches_reached() or not progress.current.processed:
        yield
        return
    now = progress.state_dict()
    for counts in (progress.current, progress.total):
        counts.processed -= 1
        counts.completed -= 1
    try:
        yield
    finally:
        progress.load_state_dict(now)


@contextmanager
def validation_due(trainer: Any) -> Iterator[None]:
    """Let the progress be that of a validation interrupted in its first batch, all to be done."""
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    now = progress.state_dict()
    progress.reset()
    progress.total.ready = progress.total.started = 1
    try:
        yield
    finally:
        progress.load_state_dict(now)
