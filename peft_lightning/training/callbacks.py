"""The callbacks of every run, beside the user's and in place of Lightning's defaults."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch.callbacks import (
    Callback,
    ModelCheckpoint,
    ProgressBar,
    RichProgressBar,
    TQDMProgressBar,
)
from lightning.pytorch.trainer.connectors.callback_connector import _CallbackConnector

from peft_lightning.training.answer_metrics import AnswerMetrics
from peft_lightning.training.averaging import AfterAveraging, BeforeAveraging
from peft_lightning.training.checkpoint import AdapterCheckpoint
from peft_lightning.training.cluster.agreement import RanksAgree
from peft_lightning.training.cluster.preemption import StopOnSignal
from peft_lightning.training.finished_run import FinishedRun
from peft_lightning.training.forgetting import Forgetting
from peft_lightning.training.generations import LogGenerations
from peft_lightning.training.hidden_states import HiddenStates
from peft_lightning.training.history import History
from peft_lightning.training.lightning_parts import BuildFirst
from peft_lightning.training.logged_hyperparameters import LogHyperparameters
from peft_lightning.training.logger_checkpoints import UploadCheckpoints
from peft_lightning.training.loss_log import LossLog
from peft_lightning.training.out_of_memory import OutOfMemoryAdvice
from peft_lightning.training.overfitting import OverfittingNotice
from peft_lightning.training.progress_bar import TokenProgressBar
from peft_lightning.training.rng_state import RNGState
from peft_lightning.training.run_dir import RunDir
from peft_lightning.training.run_end import EndNotice
from peft_lightning.training.run_identity import RunIdentity
from peft_lightning.training.run_report import RunReport
from peft_lightning.training.sanity_checks import SanityChecks
from peft_lightning.training.summary import Summary
from peft_lightning.training.throughput import Throughput


def with_default_callbacks(
    callbacks: list[Callback], given: Sequence[Callback] = ()
) -> list[Callback]:
    """Return a trainer's callbacks with those that exact resume and a readable run need.

    A class of ours that is there already stays as it was given. What Lightning adds itself because
    nothing was given, a ``ModelCheckpoint`` and a progress bar without options, makes room for
    ours. A callback of the user stays, and ours come beside it: a ``ModelCheckpoint`` saves what it
    is told to, and ``last.ckpt`` is kept all the same.

    Args:
        callbacks: The trainer's. It has no ``ModelCheckpoint`` if checkpoints are disabled.
        given: Those of them that the user is known to have given, also if without options.
    """
    defaults = [c for c in callbacks if _is_default(c) and all(c is not g for g in given)]
    kept = [callback for callback in callbacks if callback not in defaults]

    def new(*kinds: type[Callback]) -> list[Callback]:
        return [kind() for kind in kinds if not any(isinstance(c, kind) for c in kept)]

    # the loss, answers and general text: of averaged weights, where there are any
    first = new(RanksAgree, BuildFirst, LossLog, AnswerMetrics, Forgetting, BeforeAveraging)
    first += new(RunDir, RunIdentity, FinishedRun, OutOfMemoryAdvice, RNGState)
    last = new(AfterAveraging, SanityChecks, Throughput, History, LogGenerations)
    last += new(OverfittingNotice, Summary, HiddenStates)
    last += new(LogHyperparameters, UploadCheckpoints, EndNotice)
    if any(isinstance(callback, ProgressBar) for callback in defaults):
        last.append(TokenProgressBar())
    last += new(StopOnSignal, RunReport)  # whose page tells of the end, and of what was saved
    if any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
        last += new(AdapterCheckpoint)
    return _CallbackConnector._reorder_callbacks([*first, *kept, *last])


def _is_default(callback: Callback) -> bool:
    """Whether ``callback`` is as Lightning adds it itself, where ours takes the place."""
    kind = type(callback)
    if kind not in (ModelCheckpoint, TQDMProgressBar, RichProgressBar):
        return False
    return _options(callback) == _options(kind())


def _options(callback: Callback) -> dict[str, str]:
    """Return what the constructor of a callback has set."""
    return {name: repr(value) for name, value in vars(callback).items()}
