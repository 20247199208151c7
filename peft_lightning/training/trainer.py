"""Lightning's Trainer: its precision may be ``auto``, its checkpoints are adapter folders."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import lightning as L
from lightning.pytorch.plugins import Precision

from peft_lightning.training.checkpoint import AdapterCheckpointIO
from peft_lightning.training.cluster.strategies import require_supported
from peft_lightning.training.precision import AUTO, resolve_precision, settle_resources

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


def prepare_trainer(trainer: Any) -> None:
    """Make every checkpoint of ``trainer`` an adapter folder, and share the cores of the machine.

    Raises:
        UserError: If its strategy does not work with adapters.
    """
    require_supported(trainer.strategy)
    settle_resources(trainer)
    warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # wanted
    trainer.strategy.checkpoint_io = AdapterCheckpointIO()


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
