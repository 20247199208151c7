"""What a run leaves on disk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint

from peft_lightning.data.split import Split
from peft_lightning.experiments.plan.facts import ParameterFacts
from peft_lightning.experiments.plan.measured import Measured
from peft_lightning.training.checkpoint import AdapterCheckpoint


@dataclass(frozen=True)
class DiskBytes:
    """Bytes that a run leaves on disk.

    Args:
        adapter: The trained weights alone.
        checkpoint: One checkpoint, with the optimizer's state.
        checkpoints: Number of them.
        token_cache: Of the tokenized rows.
        hidden_cache: Of ``model.cache_hidden_states``.
        logs: Of loggers and summaries, about.
    """

    adapter: int
    checkpoint: int
    checkpoints: int
    token_cache: int
    hidden_cache: int
    logs: int

    @property
    def total(self) -> int:
        """All of them."""
        kept = self.checkpoint * self.checkpoints
        return kept + self.token_cache + self.hidden_cache + self.logs


def disk_bytes(
    splits: dict[str, Split],
    parameters: ParameterFacts,
    measured: Measured | None,
    checkpoints: int,
    hidden_bytes_per_token: int,
    steps: float,
) -> DiskBytes:
    """Return what a run leaves on disk.

    Args:
        splits: Its rows.
        parameters: What is trained.
        measured: Whose checkpoint was written; without, by arithmetic.
        checkpoints: How many it leaves.
        hidden_bytes_per_token: Of ``model.cache_hidden_states``; 0 without.
        steps: Optimizer steps, which logs grow with.
    """
    adapter = 4 * parameters.trainable
    size = 3 * adapter if measured is None else measured.checkpoint_bytes
    folders = {folder for split in splits.values() for folder in split.folders}
    caches = sum(folder_bytes(folder) for folder in folders)
    tokens = sum(int(part.lengths.sum()) for s in splits.values() for part in s.parts)
    logged = 15_000 if measured is None else measured.log_bytes
    lines = steps if math.isfinite(steps) else 0
    return DiskBytes(
        *(adapter, size, checkpoints, caches, tokens * hidden_bytes_per_token),
        int(logged + 120 * lines),  # of each step a row of some logger, about
    )


def checkpoints_kept(callbacks: list[Any], steps: float, validations: int) -> int:
    """Return how many checkpoints a run leaves: the last, the one before it, the best, and more.

    Args:
        callbacks: Those of the run.
        steps: Its optimizer steps.
        validations: Its validations.
    """
    kept = 0
    for callback in callbacks:
        if not isinstance(callback, ModelCheckpoint):
            continue
        own = callback.kept if isinstance(callback, AdapterCheckpoint) else callback
        kept += validations if own.save_top_k < 0 else min(own.save_top_k, validations)
        if not isinstance(callback, AdapterCheckpoint):
            kept += bool(callback.save_last)
            continue
        known = int(steps) if math.isfinite(steps) else 0
        saves = max(1, validations) + known // callback.every_n_steps
        kept += saves if callback.kept.keep_last < 0 else callback.kept.keep_last + 1
        kept += known // callback.kept.every if callback.kept.every else 0
    return kept


def folder_bytes(folder: Path) -> int:
    """Return the bytes of the files in a folder; 0 if it does not exist."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
