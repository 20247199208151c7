"""Lightning's callbacks that average weights: they copy the module, and swap its weights."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, WeightAveraging

from peft_lightning.process.signals import STOP


class BeforeAveraging(Callback):
    """Comes before the callbacks that average, and lets them work.

    ``WeightAveraging`` validates the average in place of the weights; a signal does not interrupt
    it while it swaps the two.
    """

    def on_validation_epoch_start(self, trainer: Any, pl_module: L.LightningModule) -> None:
        if _averages(trainer):
            STOP.hold()

    on_validation_epoch_end = on_validation_epoch_start


class AfterAveraging(Callback):
    """Comes after them, and knows whether the module has the average in place of its weights."""

    is_swapped = False

    def on_validation_epoch_start(self, trainer: Any, pl_module: L.LightningModule) -> None:
        self._swapped(trainer, True)

    def on_validation_epoch_end(self, trainer: Any, pl_module: L.LightningModule) -> None:
        self._swapped(trainer, False)

    def _swapped(self, trainer: Any, is_swapped: bool) -> None:
        if _averages(trainer):
            self.is_swapped = is_swapped
            STOP.release()


def swap_back(trainer: Any, module: L.LightningModule) -> None:
    """Give a module its own weights back, if it has their average.

    A checkpoint that is saved within a validation, for a signal, is of the last step.
    """
    for after in [c for c in trainer.callbacks if isinstance(c, AfterAveraging) and c.is_swapped]:
        after.is_swapped = False
        for callback in _averages(trainer):
            callback._swap_models(module)


def _averages(trainer: Any) -> list[WeightAveraging]:
    found = [c for c in trainer.callbacks if isinstance(c, WeightAveraging)]
    return [callback for callback in found if callback._average_model is not None]
