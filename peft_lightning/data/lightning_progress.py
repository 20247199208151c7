"""Lightning's count of the finished batches of an epoch: read for a checkpoint, set on resuming."""

from typing import Any

from lightning import Trainer
from lightning.pytorch.loops.loop import _Loop


def finished_batches(trainer: Trainer) -> int:
    """Return the number of batches of the current epoch that were trained on."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return int(progress.processed)


def set_finished_batches(trainer: Trainer, finished: int) -> None:
    """Set the number of finished batches of the current epoch, at whichever hook it was saved."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    in_hook = progress.processed - progress.completed  # 1 if saved in on_train_batch_end
    progress.ready = progress.started = progress.processed = finished
    progress.completed = finished - in_hook


def complete_restarted_epoch(trainer: Trainer) -> None:
    """Count the epoch as complete if the run resumes at its end.

    With ``max_steps`` Lightning takes such an epoch for an unfinished one, trains one more batch in
    it and counts it twice; with ``max_epochs`` it does not.
    """
    fit_loop = trainer.fit_loop
    progress: Any = fit_loop.epoch_progress
    if not fit_loop.restarting or progress.current.ready != progress.current.processed:
        return
    if progress.current.completed < progress.current.processed:
        progress.increment_completed()
    setter: Any = _Loop.restarting  # the setter of the fit loop would set it to True
    setter.fset(fit_loop, False)
    fit_loop.reset_restart_stage()
    fit_loop.epoch_loop.reset_restart_stage()
