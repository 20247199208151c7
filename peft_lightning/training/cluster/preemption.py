"""Stop signals in training: a checkpoint of the last whole step, and the end of the process."""

from __future__ import annotations

import os
from signal import SIGINT, Signals
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from peft_lightning.kernels.decoder_layers import decoder_layers
from peft_lightning.process import slurm
from peft_lightning.process.signals import STOP, STOP_SIGNALS, StopSignal, own_line
from peft_lightning.training.averaging import swap_back
from peft_lightning.training.checkpoint import AdapterCheckpoint
from peft_lightning.training.cluster.launch import status_of_stop
from peft_lightning.training.cluster.step_boundary import step_boundary
from peft_lightning.training.step_progress import (
    at_step_boundary,
    training_ends,
    validation_follows,
)


class StopOnSignal(Callback):
    """Ends training cleanly on Ctrl-C, SIGTERM, SIGUSR1 or SIGHUP: saves ``last.ckpt``, then exits.

    One process stops within a step, wherever it is: the checkpoint is of the moment after the last
    optimizer step, which is remembered then. An optimizer step that has begun is finished first,
    up to that moment. Several processes have to leave together: after each step, and after each
    batch of a validation, they agree whether any of them has a signal.

    Outside SLURM the exit status is 128 plus the signal's number, as a shell reports it. Within a
    SLURM job, SIGTERM and SIGUSR1 put the job back into the queue: status 0 says that this was
    done, 75 that it was not. Lightning's own handlers are not used: they save within a step or
    block in it, and SIGTERM ends with 0 there, which a scheduler takes for success.
    """

    def __init__(self) -> None:
        self._listened: list[int] = []
        self._first_step = 0
        self._is_training = self._is_alone = self._holds = False
        self._boundary: dict[str, Any] | None = None
        self._hooks: list[RemovableHandle] = []

    def setup(self, trainer: Any, pl_module: L.LightningModule, stage: str) -> None:
        trainer._signal_connector.register_signal_handlers = lambda: None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._listened += STOP.listen(*STOP_SIGNALS)
        self._first_step = trainer.global_step
        self._boundary = None
        self._is_training, self._is_alone = True, trainer.world_size == 1
        if self._is_alone:
            self._hooks = _see_signals_in_backward(pl_module)
        else:
            self._hold("stopping after this optimizer step")

    # ---- where the state is whole ---------------------------------------------------------------

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any
    ) -> None:
        self._hold()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        if not at_step_boundary(trainer):
            return
        is_between_steps = not validation_follows(trainer)
        if self._is_alone:
            self._remember(trainer)
            if is_between_steps and not training_ends(trainer):
                self._release()
        elif is_between_steps:
            self._stop_if_asked(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._is_alone and _within_fit(trainer) and at_step_boundary(trainer):
            if trainer.global_step > self._first_step:
                self._remember(trainer, before_validation=True)
            self._release()

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        if self._is_alone or not _within_fit(trainer):
            return
        # not before the first step: a run that is always stopped early would get nowhere
        is_within_run = self._first_step < trainer.global_step != trainer.max_steps
        if is_within_run and at_step_boundary(trainer):
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._is_alone and _within_fit(trainer) and training_ends(trainer):
            self._hold()  # nothing is left that could be stopped

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        STOP.finish()

    def _remember(self, trainer: L.Trainer, before_validation: bool = False) -> None:
        self._boundary = step_boundary(trainer, before_validation)
        STOP.has_state = True

    def _hold(self, text: str | None = None) -> None:
        if not self._holds:
            self._holds = True
            STOP.hold(text)

    def _release(self) -> None:
        if self._holds:
            self._holds = False
            STOP.release()
        STOP.check()

    # ---- the end --------------------------------------------------------------------------------

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        """End all processes here if one of them was sent a signal."""
        flag = torch.tensor(STOP.received or 0, device=trainer.strategy.root_device)
        received = int(trainer.strategy.reduce(flag, reduce_op="max"))
        if not received:
            return
        self._save(trainer, received)
        stop = StopSignal(received)
        stop.code = status_of_stop(received, trainer.local_rank == 0, os.environ)
        if slurm.current_job() is not None and received != SIGINT:
            own = slurm.stop_status(received, rank_zero_info) if trainer.is_global_zero else None
            stop.code = trainer.strategy.broadcast(own)
        stop.is_answered = True
        STOP.answer()
        raise stop

    def on_exception(
        self, trainer: Any, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        is_answered = isinstance(exception, StopSignal) and exception.is_answered
        has_partners = self._is_training and not self._is_alone
        if not isinstance(exception, SystemExit) and (has_partners or not STOP.is_pending):
            STOP.failure = exception  # without a partner too, whose end SLURM answers with SIGTERM
        elif STOP.is_pending and not is_answered:
            assert STOP.received is not None
            STOP.answer()
            if self._is_training and self._is_alone:
                self._save(trainer, STOP.received)
                if isinstance(exception, StopSignal):
                    exception.code = slurm.stop_status(STOP.received, rank_zero_info)
                    exception.is_answered = True
        self._forget()

    def _save(self, trainer: Any, received: int) -> None:
        """Save ``last.ckpt`` of the last whole step, and say so."""
        name = own_line() + Signals(received).name
        if self._is_alone and self._boundary is None:
            resumed = f"; {trainer.ckpt_path} stays as it is" if trainer.ckpt_path else ""
            rank_zero_info(f"{name}: stopped before the first step, nothing to save{resumed}")
            return
        swap_back(trainer, trainer.lightning_module)
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, AdapterCheckpoint):
                callback.save_now(trainer, state=self._boundary)
                rank_zero_info(
                    f"{name}: stopped at step {trainer.global_step}; {callback.last_model_path} "
                    "is saved, --ckpt_path last continues from it"
                )

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._forget()

    def _forget(self) -> None:
        if self._holds:
            STOP.release(check=False)
        self._holds = self._is_training = STOP.has_state = False
        STOP.forget(self._listened)
        self._listened = []
        for hook in self._hooks:
            hook.remove()


def _within_fit(trainer: Any) -> bool:
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def _see_signals_in_backward(module: Any) -> list[RemovableHandle]:
    """Let a signal be seen between two layers of a backward pass that runs no Python otherwise.

    Python's handlers run where Python does. Not with compiled layers, whose backward passes are
    called from Python.
    """
    if module.compile_layers:
        return []
    layers = decoder_layers(module.model)
    return [layer.register_forward_hook(_see_signals_of_output) for layer in layers]


def _see_signals_of_output(layer: Any, inputs: Any, output: Any) -> None:
    hidden = output[0] if isinstance(output, tuple) else output
    if isinstance(hidden, Tensor) and hidden.requires_grad:
        hidden.register_hook(_see_signals)


def _see_signals(gradient: Tensor) -> None:
    STOP.check()
