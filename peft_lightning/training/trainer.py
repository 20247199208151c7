"""Lightning's Trainer for the command line: its precision may be ``auto``."""

from __future__ import annotations

from typing import Any, Literal

import lightning as L
from lightning.pytorch.plugins import Precision

from peft_lightning.training.precision import AUTO, resolve_precision

PrecisionName = (
    Literal["auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"]
    | Literal["transformer-engine", "transformer-engine-float16"]
    | Literal["32", "bf16", "16", "64", 32, 16, 64]
)


class Trainer(L.Trainer):
    """Lightning's Trainer.

    Args:
        precision: auto for what suits the processor, or one of Lightning's.
        kwargs: Its other options.
    """

    def __init__(self, precision: PrecisionName | None = "auto", **kwargs: Any) -> None:
        super().__init__(precision=precision, **kwargs)  # type: ignore[arg-type]


def precision_option(trainer: Any, dtype: str) -> Any:
    """Return the ``precision`` to build a trainer with, resolved for this machine.

    Args:
        trainer: Its options.
        dtype: Of the base's frozen weights, as given.
    """
    plugins = trainer.plugins if isinstance(trainer.plugins, list) else [trainer.plugins]
    if trainer.precision == AUTO and any(isinstance(p, Precision) for p in plugins):
        return None  # the plugin says it
    return resolve_precision(trainer.precision, trainer.accelerator, dtype)
