"""A run's folder: written by one run at a time, and known to be writable before training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import IO, Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from peft_lightning.files import lock_folder
from peft_lightning.messages import SharedError

LOCK_FILE = "run.lock"


class RunDir(Callback):
    """Refuses a second ``fit`` in the folder of one that is running.

    The lock is that of ``lock_folder``; the workers of a data loader do not inherit it.
    """

    def __init__(self) -> None:
        self._file: IO[str] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        refusal = self._take(Path(trainer.default_root_dir)) if trainer.is_global_zero else None
        # to every rank, so that none waits for those that are gone
        if refusal := trainer.strategy.broadcast(refusal):
            raise SharedError(refusal)

    def _take(self, folder: Path) -> str | None:
        """Lock the folder and say in the file who has it; return why that cannot be."""
        try:
            found = lock_folder(folder, LOCK_FILE, rank_zero_info)
        except OSError as error:
            return (
                f"the run's folder {folder} cannot be written: {error.strerror}; give "
                "--trainer.default_root_dir one that can"
            )
        if isinstance(found, str):
            return (
                f"another run is training in {folder}, {found}: wait for it, or give "
                "--trainer.default_root_dir another folder"
            )
        self._file = found
        return None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove what killed runs have left half-written, on this machine or another."""
        if self._file is None:
            return
        for callback in trainer.checkpoint_callbacks:
            folder = getattr(callback, "dirpath", None)
            for left in Path(folder).glob(".*.ckpt.*.tmp") if folder else ():
                shutil.rmtree(left)

    def teardown(self, trainer: Any, pl_module: L.LightningModule, stage: str) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
