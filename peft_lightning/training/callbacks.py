"""The callbacks of every run, in place of Lightning's defaults."""

from __future__ import annotations

from lightning.pytorch.callbacks import (
    Callback,
    ModelCheckpoint,
    ProgressBar,
    RichProgressBar,
    TQDMProgressBar,
)

from peft_lightning.training.checkpoint import AdapterCheckpoint
from peft_lightning.training.cluster.preemption import StopOnSignal
from peft_lightning.training.generations import LogGenerations
from peft_lightning.training.logged_hyperparameters import LogHyperparameters
from peft_lightning.training.logger_checkpoints import UploadCheckpoints
from peft_lightning.training.out_of_memory import OutOfMemoryAdvice
from peft_lightning.training.progress_bar import TokenProgressBar
from peft_lightning.training.rng_state import RNGState
from peft_lightning.training.run_dir import RunDir
from peft_lightning.training.run_identity import RunIdentity
from peft_lightning.training.sanity_checks import SanityChecks
from peft_lightning.training.summary import Summary
from peft_lightning.training.throughput import Throughput


def default_callbacks(callbacks: list[Callback]) -> list[Callback]:
    """Return what exact resume and a readable run need beside the trainer's own callbacks.

    Args:
        callbacks: The trainer's. Lightning's own defaults are taken out; ours come in their place.

    Returns:
        Those to add: none of a class that is there already.
    """
    wanted: list[Callback] = [
        RunDir(),
        RunIdentity(),
        OutOfMemoryAdvice(),
        RNGState(),
        SanityChecks(),
    ]
    wanted += [Throughput(), LogGenerations(), Summary(), LogHyperparameters(), UploadCheckpoints()]
    for default in [c for c in callbacks if _is_lightnings_default(c)]:
        callbacks.remove(default)
        is_bar = isinstance(default, ProgressBar)
        wanted.append(TokenProgressBar() if is_bar else AdapterCheckpoint())
    wanted.append(StopOnSignal())
    present = {type(callback) for callback in callbacks}
    return [callback for callback in wanted if type(callback) not in present]


def _is_lightnings_default(callback: Callback) -> bool:
    """Whether Lightning added ``callback`` itself, where ours takes the place."""
    if type(callback) is ModelCheckpoint:
        return callback.dirpath is None and callback.filename is None and callback.monitor is None
    return type(callback) in (RichProgressBar, TQDMProgressBar)
