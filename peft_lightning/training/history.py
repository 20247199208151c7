"""History: what a run has logged, step by step, in a file that its interruptions leave whole."""

from __future__ import annotations

from math import isinf
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from peft_lightning.training.run_lines import RunLines
from peft_lightning.training.step_progress import at_step_boundary, training_ends
from peft_lightning.training.throughput import Throughput
from peft_lightning.training.virtual_tokens import VECTOR

HISTORY_FILE = "history.jsonl"


class History(Callback):
    """Writes ``history.jsonl`` in the run's folder: one JSON object a line, as training goes.

    A line has ``kind``, ``step`` (optimizer steps), ``epoch``, ``tokens`` and ``seconds`` (of
    training alone, of all processes and all starts) and ``metrics`` by name:

    - ``train``: every ``log_every_n_steps``, and the last step, also that of a run that is stopped;
      with virtual tokens also ``virtual_token_grad_norms``, a list of one number for each;
    - ``val``: after each validation;
    - ``warning``: has a ``text`` too.

    A resumed run drops the lines that it will write again: the file is the curve of one run.

    The loggers of the trainer get the last step too, which Lightning logs only if it is a multiple
    of ``log_every_n_steps`` or a callback ends the run. They also get a step that is due when a
    signal ends the run before Lightning has logged it, and the numbers of the steps go on where
    they ended: the curve of a run that was stopped is that of one that was not.
    """

    def __init__(self) -> None:
        self._file = RunLines(HISTORY_FILE)
        self._written: dict[str, int] = {}  # the last step of each kind
        self._step: tuple[dict[str, Any], int, dict[str, Any]] | None = None
        self._norms: Tensor | None = None  # of that step's virtual tokens
        self._is_logged = True  # by Lightning
        self._is_due = False  # and not written by Lightning before this batch is completed
        self._batch = 0

    def state_dict(self) -> dict[str, Any]:
        return {"written": {**self._written}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._written = dict(state_dict["written"])

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._file.find(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step, self._is_logged = None, True
        self._file.begin(lambda line: line["step"] <= self._written.get(line["kind"], -1))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Number the loggers' lines as in a run that never stopped; checkpoints miss one."""
        if pl_module.automatic_optimization:
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.barebones or not at_step_boundary(trainer):
            return
        self._step = _position(trainer), trainer.current_epoch, _logged(trainer)
        self._norms = pl_module.step_sums.virtual_token_norms
        every = trainer.log_every_n_steps
        self._is_logged = self._is_due = bool(every) and trainer.global_step % every == 0
        self._batch = trainer.fit_loop.epoch_loop.batch_progress.total.processed
        if self._is_logged or training_ends(trainer):
            self._write_step()

    def on_validation_start(self, trainer: Any, pl_module: L.LightningModule) -> None:
        self._is_logged |= trainer.should_stop
        if pl_module.automatic_optimization and trainer.state.fn == "fit":
            is_counted = trainer.sanity_checking or not at_step_boundary(trainer)
            steps = trainer.global_step - (0 if is_counted else 1)
            trainer.fit_loop.epoch_loop._batches_that_stepped = max(0, steps)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._is_logged |= trainer.should_stop  # before what may end the run here

    def on_validation_end(self, trainer: Any, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        found = dict(trainer.fit_loop.epoch_loop.val_loop._results.metrics(on_step=False)["log"])
        metrics = trainer.callback_metrics.items()
        found |= {name: value for name, value in metrics if name.startswith("val")}
        self._write("val", _position(trainer), metrics=_floats(found))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write_last_step(trainer)

    def on_exception(
        self, trainer: Any, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        if trainer.state.fn != "fit":
            return
        completed = trainer.fit_loop.epoch_loop.batch_progress.total.completed
        self._is_logged = not self._is_due or completed >= self._batch
        self._write_last_step(trainer)

    def warn(self, trainer: Any, text: str, **metrics: float) -> None:
        """Write a line of the kind ``warning``.

        Args:
            trainer: That trains.
            text: One line: what is seen, and what to do.
            metrics: The numbers behind it.
        """
        self._write("warning", _position(trainer), metrics=metrics, text=text)

    def _write_step(self) -> None:
        """Write the last whole step, unless that is done."""
        if self._step is not None and self._step[0]["step"] != self._written.get("train"):
            more = {} if self._norms is None else {VECTOR: self._norms.tolist()}
            self._write("train", self._step[0], metrics=_floats(self._step[2]), **more)

    def _write_last_step(self, trainer: Any) -> None:
        """Write it and give it to the loggers, unless that is done."""
        self._write_step()
        if self._step is not None and not self._is_logged:
            position, epoch, values = self._step
            metrics = {**values, "epoch": epoch}
            trainer._logger_connector.log_metrics(metrics, step=position["step"] - 1)
        self._step = None

    def _write(self, kind: str, position: dict[str, Any], **rest: Any) -> None:
        self._written[kind] = position["step"]
        self._file.append({"kind": kind, **position, **rest})


def _position(trainer: Any) -> dict[str, Any]:
    """Return how far a run is, after an optimizer step."""
    loop, batches = trainer.fit_loop, trainer.num_training_batches
    share = 0.0 if isinf(batches) else loop.epoch_loop.batch_progress.current.processed / batches
    throughput = next(c for c in trainer.callbacks if isinstance(c, Throughput))
    return {
        "step": trainer.global_step,
        "epoch": round(loop.epoch_progress.current.processed + share, 6),
        "tokens": throughput.tokens,
        "seconds": round(throughput.seconds, 3),
    }


def _logged(trainer: Any) -> dict[str, Any]:
    """Return what the step has logged so far, as Lightning does in a multiple of the time."""
    return {
        metric.meta.forked_name(on_step=True): metric._forward_cache
        for metric in trainer.fit_loop.epoch_loop._results.values()
        if metric.meta.on_step and metric.meta.logger and not metric.has_reset
    }


def _floats(metrics: Any) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if value is not None}
