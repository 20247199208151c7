"""Throughput: tokens per second, learning rate and memory of a run, logged as it trains."""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from peft_lightning.training.batch_size import count_tokens
from peft_lightning.training.step_progress import at_step_boundary


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of the device on CUDA, else resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, IndexError):  # of this program, not of the one that started it
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Throughput(Callback):
    """Logs useful tokens per second over the last steps, learning rate and peak memory.

    Args:
        window: Batches that the rate is taken over.
    """

    def __init__(self, window: int = 20) -> None:
        self._times: deque[tuple[float, int]] = deque(maxlen=window + 1)
        self.tokens = 0  # of all processes
        self.seconds = 0.0
        self._batch_start = 0.0
        self._waiting = (0, 0.0)  # tokens and seconds of the step that is under way
        self._learning_rate: float | None = None  # of the batch that is under way

    def state_dict(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tokens, self.seconds = state_dict["tokens"], state_dict["seconds"]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        self._batch_start = time.perf_counter()
        if trainer.optimizers:  # before the schedule sets that of the next step
            self._learning_rate = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        tokens = count_tokens(batch) * trainer.world_size  # those of the other ranks are alike
        spent = time.perf_counter() - self._batch_start
        self._waiting = self._waiting[0] + tokens, self._waiting[1] + spent
        if at_step_boundary(trainer):  # a step that is cut off is made again
            self.tokens += self._waiting[0]
            self.seconds += self._waiting[1]
            self._waiting = (0, 0.0)
        self._times.append((spent, tokens))
        rate = sum(n for _, n in self._times) / max(1e-9, sum(s for s, _ in self._times))
        values = {"tokens_per_second": rate} if self.tokens else {}
        if self._learning_rate is not None:
            values["lr"] = self._learning_rate
        pl_module.log_dict(values, prog_bar=True, rank_zero_only=True)
        pl_module.log("peak_memory_mib", peak_memory(pl_module.device) / 2**20, rank_zero_only=True)
