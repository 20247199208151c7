"""Stop signals: agreed on between two steps, a checkpoint, the job back into the queue, the end."""

from __future__ import annotations

import signal
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from peft_lightning.checkpoint import Checkpoints, at_step_boundary, validation_follows
from peft_lightning.cluster import slurm
from peft_lightning.cluster.signals import STOP

TEMPORARY_FAILURE = 75  # EX_TEMPFAIL of sysexits.h: to be started again


class StopOnSignal(Callback):
    """Ends training cleanly on Ctrl-C, SIGTERM or SIGUSR1: saves ``last.ckpt``, then exits.

    The handler only notes a signal, so nothing is ever saved in the middle of a step. After each
    step, and after each batch of a validation, the ranks agree whether any of them has one.

    Outside SLURM the exit status is 128 plus the signal's number, as a shell reports it. Within a
    SLURM job, SIGTERM and SIGUSR1 put the job back into the queue: status 0 says that this was
    done, 75 that it was not. Lightning's own handlers are not used: they save within a step or
    block in it, and SIGTERM ends with 0 there, which a scheduler takes for success.
    """

    def __init__(self) -> None:
        self._listened: list[int] = []
        self._first_step = 0

    def setup(self, trainer: Any, pl_module: L.LightningModule, stage: str) -> None:
        trainer._signal_connector.register_signal_handlers = lambda: None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._listened += STOP.listen(signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        if at_step_boundary(trainer) and not validation_follows(trainer):
            self._stop_if_asked(trainer)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        # not before the first step: a run that is always stopped early would get nowhere
        is_within_run = self._first_step < trainer.global_step != trainer.max_steps
        if is_within_run and at_step_boundary(trainer):
            self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        received = STOP.received or 0
        if trainer.world_size > 1:
            flag = torch.tensor(received, device=trainer.strategy.root_device)
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
        raise SystemExit(_status(trainer, received))

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._forget()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._forget()

    def _forget(self) -> None:
        STOP.forget(self._listened)
        self._listened = []


def _status(trainer: L.Trainer, received: int) -> int:
    """Return this rank's exit status; a SLURM job is put back into the queue."""
    job = slurm.current_job()
    if job is None or received == signal.SIGINT:
        # Lightning's launcher kills the first process of a node when one that it started fails
        return 128 + received if trainer.local_rank == 0 else 0
    problem = slurm.requeue(job) if trainer.is_global_zero else None
    if problem is None:
        rank_zero_info(f"job {job} is back in the queue")
    else:
        rank_zero_info(
            f"job {job} is not back in the queue ({problem}): to continue, submit it again with "
            "--ckpt_path last"
        )
    return 0 if trainer.strategy.broadcast(problem) is None else TEMPORARY_FAILURE
