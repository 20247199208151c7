"""What a run needs of Lightning's Trainer, given to it when a module is attached to it."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import lightning as L
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.plugins import Precision
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from peft_lightning.training.callbacks import with_default_callbacks
from peft_lightning.training.checkpoint import AdapterCheckpointIO, WrappedCheckpointIO
from peft_lightning.training.cluster.strategies import require_supported
from peft_lightning.training.gradients import TokenWeightedOptimization
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


def attach(trainer: Any, module: Any) -> None:
    """Prepare a trainer for a ``CausalLMModule``: callbacks, checkpoints, weights of tokens.

    Called whenever Lightning gives the module its trainer, at the start of each ``fit``,
    ``validate``, ``test`` and ``predict``. It is no hook, so no subclass can override it and leave
    a part out. Nothing is done for a module that is a part of the module that is trained.

    Raises:
        UserError: If the strategy does not work with adapters.
    """
    if trainer is None or trainer.lightning_module is not module:
        return
    require_supported(trainer.strategy)
    settle_resources(trainer)
    warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # wanted
    trainer.callbacks = with_default_callbacks(trainer.callbacks)
    trainer.strategy.checkpoint_io = _checkpoint_io(trainer.strategy, module)
    steps = trainer.fit_loop.epoch_loop
    if not isinstance(steps.automatic_optimization, TokenWeightedOptimization):
        progress = steps.automatic_optimization.optim_progress
        steps.automatic_optimization = TokenWeightedOptimization(trainer)
        steps.automatic_optimization.optim_progress = progress


def _checkpoint_io(strategy: Any, module: Any) -> CheckpointIO:
    """Return what writes the checkpoints of a module: folders, unless a plugin of the user does.

    Args:
        strategy: Its plugin, if it wraps another as Lightning's ``AsyncCheckpointIO``, gets ours
            to wrap.
        module: That is trained.
    """
    given, own = strategy._checkpoint_io, AdapterCheckpointIO(module)
    if isinstance(given, WrappedCheckpointIO):
        given = given.wrapper
    if isinstance(given, _WrappingCheckpointIO):
        return WrappedCheckpointIO(given, own)
    if given is None or type(given) in (AdapterCheckpointIO, TorchCheckpointIO):
        return own
    if module.trainer.state.fn == "fit":
        rank_zero_info(
            f"checkpoints are written by {type(given).__name__}, not as adapter folders: generate, "
            "merge and the other commands cannot read them"
        )
    return given


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
