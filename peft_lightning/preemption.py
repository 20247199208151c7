"""Stop signals: a flag in the handler, a checkpoint at the next step boundary, then the end."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from peft_lightning.checkpoint import Checkpoints, at_step_boundary


class StopOnSignal(Callback):
    """Ends training cleanly on Ctrl-C or SIGTERM: saves ``last.ckpt``, then exits.

    The handler only sets a flag, so nothing is ever saved in the middle of a step; the ranks of
    a distributed run agree on it after each step. A second Ctrl-C interrupts at once. The exit
    status is 128 plus the signal's number, as a shell reports it: 130 for Ctrl-C, 143 for
    SIGTERM (Lightning alone exits with 0 there, and a scheduler takes that for success).
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[int, Any] = {}
        self._pid = os.getpid()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # not earlier: Lightning's own handler, which ends a run within a step, comes after setup
        self._pid = os.getpid()
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a data loader's worker inherited the handler
            return
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number
        name = signal.Signals(number).name
        text = f"\n{name}: stopping after this optimizer step"
        os.write(2, (text + " (Ctrl-C again: at once, without saving)\n").encode())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        if not at_step_boundary(trainer):
            return
        received = self._received or 0
        if trainer.world_size > 1:
            flag = torch.tensor(received, device=pl_module.device)
            received = int(trainer.strategy.reduce(flag, reduce_op="max"))
        if not received:
            return
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, Checkpoints):
                callback.save_now(trainer)
                rank_zero_info(
                    f"stopped at step {trainer.global_step}; {callback.last_model_path} "
                    "is saved, --ckpt_path last continues from it"
                )
        raise SystemExit(128 + received)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())
