"""A few steps of the real run, timed: its trainer, data and model, in a temporary folder."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint

from peft_lightning.experiments.plan.steps_timer import MeasureSteps
from peft_lightning.messages import RunError
from peft_lightning.training.checkpoint import AdapterCheckpoint


def measure(
    trainer: Any, module: Any, datamodule: Any, processes: int, batches: int | None
) -> MeasureSteps:
    """Run a few steps of a run and its validation; nothing of it is printed.

    Args:
        trainer: That of ``fit``, with a temporary ``default_root_dir``.
        module: What is trained.
        datamodule: The rows.
        processes: Of the real run; this one is alone.
        batches: Training batches to run; None for as many as a good mean needs.
    """
    callback = MeasureSteps(processes, batches)
    trainer.callbacks.append(callback)
    root = Path(trainer.default_root_dir)
    for i, saving in enumerate(trainer.callbacks):
        if isinstance(saving, ModelCheckpoint) and saving.dirpath is not None:
            saving.dirpath = str(root / f"checkpoints_{i}")
        if isinstance(saving, AdapterCheckpoint):
            saving.push_to_hub = None
    with quiet():
        try:
            trainer.fit(module, datamodule=datamodule)
        except RunError:  # of the end: so few steps may move too little
            if not callback.is_done:
                raise
    callback.finish(root, module.device)
    return callback


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what a run says on its way; errors are raised as ever."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
