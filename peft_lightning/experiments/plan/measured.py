"""What a few steps of a run took, and which batches are run for it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peft_lightning.data.batching import RowIndices
from peft_lightning.training.throughput import peak_memory


@dataclass
class Measured:
    """What a few steps took, in seconds and bytes.

    Args:
        batches: Tokens and seconds of each training batch, the optimizer's step left out.
        optimizer: Seconds of each optimizer step.
        val_batches: Tokens and seconds of each validation batch.
        val_rest: Seconds of a validation beside its batches, such as answers to sample prompts.
        saves: Seconds of each checkpoint that was saved.
        start: Seconds until the first step, tokenizing left out.
        tokenizing: Seconds of it.
        end: Seconds after the last step and its checkpoint.
        loaded: Resident bytes before the first step; allocated ones on a GPU.
        load_peak: Peak until then.
        peak: Peak of all.
        checkpoint_bytes: Of one checkpoint.
        log_bytes: Of the other files in the run's folder.
        checkpoints: Checkpoints that the run leaves.
        device: cpu or cuda.
    """

    batches: list[tuple[int, float]] = field(default_factory=list)
    optimizer: list[float] = field(default_factory=list)
    val_batches: list[tuple[int, float]] = field(default_factory=list)
    val_rest: float = 0.0
    saves: list[float] = field(default_factory=list)
    start: float = 0.0
    tokenizing: float = 0.0
    end: float = 0.0
    loaded: int = 0
    load_peak: int = 0
    peak: int = 0
    checkpoint_bytes: int = 0
    log_bytes: int = 0
    checkpoints: int = 0
    device: str = "cpu"


def choose(batches: list[RowIndices], lengths: Any, count: int) -> list[RowIndices]:
    """Return the batches to run: a typical one, the largest, and others of all sizes.

    Where an epoch has fewer, the largest comes first, as an epoch may be cut after it.
    """
    filled = [batch for batch in batches if len(batch)]
    sizes = np.array([lengths[batch].sum() for batch in filled])
    order = np.argsort(sizes, kind="stable")
    largest = filled[int(order[-1])]
    if len(filled) <= 2:
        return [largest, *filled][:count]
    spread = (np.arange(count) * 0.618034 + 0.5) % 1  # evenly, wherever the series is cut
    typical = [filled[int(order[int(share * len(filled))])] for share in spread]
    first = [largest, typical[0]] if len(filled) < count else [typical[0], largest]
    return [*first, *typical[1:]][:count]


def resident(device: torch.device) -> int:
    """Return the bytes that are in use now: of the device on CUDA, else resident ones."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError, IndexError):
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024
    return peak_memory(device)
