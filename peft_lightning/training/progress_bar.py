"""The line that shows how far a run is: Lightning's progress bar for training and evaluation."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import lightning as L
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from peft_lightning.kernels.decoder_layers import decoder_layers
from peft_lightning.process.progress import Progress
from peft_lightning.process.progress_format import bar, clock
from peft_lightning.training.planned_steps import planned_steps
from peft_lightning.training.time_left import TimeLeft

METRICS_EVERY = 0.3  # seconds: reading a metric waits for the device


class _Training(Progress):
    """The line of a training run."""

    def __init__(self, time_left: TimeLeft) -> None:
        super().__init__("training")
        self.time_left = time_left
        self.epoch = self.step = self.phase = ""
        self.share = 0.0
        self.metrics: list[str] = []

    def parts(self) -> list[tuple[int, str]]:
        now = time.monotonic()
        left = self.time_left.seconds(now)
        about = "about " if self.time_left.is_rough else ""
        shown = clock(now - self.started) if left is None else f"{about}{clock(left)} left"
        parts = [(4, self.epoch), (0, self.step), (8, bar(self.share, 10)), (1, self.phase)]
        parts += [(5 + min(i, 4), text) for i, text in enumerate(self.metrics)]
        return [*parts, (2, shown)]


class TokenProgressBar(LightningProgressBar):
    """One line for the whole run: epoch, step, loss, speed and the time that is left."""

    SHORT: ClassVar = {"train/loss": "loss", "tokens_per_second": "tok/s"}

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._work: Progress | None = None
        self._time = TimeLeft(0)
        self._read_at = float("-inf")
        self._hooks: list[RemovableHandle] = []

    def disable(self) -> None:
        """Show nothing."""
        self._enabled = False

    def enable(self) -> None:
        """Show the line again."""
        self._enabled = True

    # ---- training -----------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        batches = self._total_batches(trainer)
        per_epoch = max(1, self.total_train_batches)
        evaluations = self._evaluations(trainer, batches / per_epoch)
        self._time = TimeLeft(batches, evaluations, sum(trainer.num_val_batches))
        self._begin(_Training(self._time))
        self._show(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._time.batch_starts(time.monotonic())
        if self._time.is_rough and not self._hooks and not getattr(pl_module, "compile_layers", 0):
            layers = decoder_layers(pl_module)
            self._hooks = [layer.register_forward_hook(self._layer_ends) for layer in layers]

    def _layer_ends(self, *args: Any) -> None:
        self._time.layer_ends(len(self._hooks))

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._unhook()
        self._time.batch_ends(time.monotonic())
        self._show(trainer)

    def _show(self, trainer: L.Trainer, phase: str = "") -> None:
        work = self._work
        if not isinstance(work, _Training):
            return
        total = planned_steps(trainer)
        known = total != float("inf")
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or -1
        work.epoch = f"epoch {epoch}" if epochs < 0 else f"epoch {min(epoch, epochs)}/{epochs}"
        work.step = f"step {trainer.global_step:,}" + (f"/{int(total):,}" if known else "")
        work.share = min(1.0, trainer.global_step / total) if known and total else 0.0
        work.phase = phase
        now = time.monotonic()
        if now - self._read_at > METRICS_EVERY:
            self._read_at = now
            work.metrics = self._metrics(trainer)
        work.update(trainer.global_step)

    def _metrics(self, trainer: L.Trainer) -> list[str]:
        found = {
            self.SHORT.get(name, name): value.item() if isinstance(value, Tensor) else value
            for name, value in trainer.progress_bar_metrics.items()
        }
        first = [n for n in ("loss", "tok/s", "val/loss") if n in found]
        names = [
            *first,
            *(n for n in found if n not in (*first, "lr")),
            *(["lr"] * ("lr" in found)),
        ]
        return [_metric(name, found[name]) for name in names]

    def _total_batches(self, trainer: L.Trainer) -> float:
        steps = planned_steps(trainer)
        if steps == float("inf"):
            return float("inf")
        return (steps - trainer.global_step) * trainer.accumulate_grad_batches

    def _evaluations(self, trainer: L.Trainer, epochs: float) -> float:
        if not trainer.enable_validation or epochs == float("inf"):
            return 0
        every = trainer.val_check_batch
        per_epoch = self.total_train_batches / every if isinstance(every, int) and every else 1
        return epochs * max(1, int(per_epoch)) / (trainer.check_val_every_n_epoch or 1)

    # ---- evaluation ---------------------------------------------------------------------------

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._time.evaluation_starts(time.monotonic())
        if self._work is None:
            self._begin(Progress("validating", sum(trainer.num_val_batches), "batches"))

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if isinstance(self._work, _Training):
            total = sum(trainer.num_val_batches)
            self._time.evaluation_batch_ends(batch_idx + 1)
            self._show(trainer, f"validating {batch_idx + 1}/{total}")
        else:
            self._update(batch_idx + 1)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if isinstance(self._work, _Training):
            self._time.evaluation_ends(time.monotonic())
            self._read_at = float("-inf")
            self._show(trainer)
        else:
            self._finish()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin(Progress("testing", sum(trainer.num_test_batches), "batches"))

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin(Progress("answering", sum(trainer.num_predict_batches), "batches"))

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._update(batch_idx + 1)

    on_test_batch_end = on_predict_batch_end

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._finish()

    on_test_end = on_predict_end

    # ---- the line -----------------------------------------------------------------------------

    def _begin(self, work: Progress) -> None:
        self._finish()
        if self._enabled:
            self._work = work
            work.__enter__()

    def _update(self, done: float) -> None:
        if self._work is not None:
            self._work.update(done)

    def _finish(self) -> None:
        if self._work is not None:
            self._work.__exit__()
        self._work = None

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._finish()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._unhook()
        self._finish()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._unhook()
        self._finish()


def _metric(name: str, value: Any) -> str:
    if name == "tok/s":
        return f"{value:,.0f} tok/s"
    if name == "lr":
        return f"lr {value:.1e}"
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
