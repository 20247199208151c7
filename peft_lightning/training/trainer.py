"""What a run needs of Lightning's Trainer, given to it when a module is attached to it."""

from __future__ import annotations

import inspect
import os
import warnings
from types import SimpleNamespace
from typing import Any, Literal

import lightning as L
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.plugins import Precision
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from peft_lightning.training.callbacks import with_default_callbacks
from peft_lightning.training.checkpoint_io import AdapterCheckpointIO, WrappedCheckpointIO
from peft_lightning.training.cluster.launch import find_launch, launched_options
from peft_lightning.training.cluster.strategies import require_supported
from peft_lightning.training.gradients import TokenWeightedOptimization
from peft_lightning.training.lightning_parts import (
    let_spikes_resume,
    require_supported_parts,
    require_supported_plugins,
)
from peft_lightning.training.log_filters import filter_logs
from peft_lightning.training.loggers import loggers_of_run
from peft_lightning.training.precision import (
    AUTO,
    check_devices,
    resolve_precision,
    settle_resources,
)
from peft_lightning.training.run_defaults import (
    ROOT,
    TRAINER_DEFAULTS,
    fill_epochs,
)

PrecisionName = (
    Literal["auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"]
    | Literal["transformer-engine", "transformer-engine-float16"]
    | Literal["32", "bf16", "16", "64", 32, 16, 64]
)

LIGHTNINGS: dict[str, Any] = {
    name: parameter.default
    for name, parameter in inspect.signature(L.Trainer.__init__).parameters.items()
    if name not in ("self", "precision")
}


class Trainer(L.Trainer):
    """Lightning's Trainer with the defaults of ``python -m peft_lightning fit``.

    These are: 3 epochs, gradient norm clipped at 1, the precision that suits the processor, no
    sanity check and no model summary, a CSV and a TensorBoard logger beside those given, the folder
    runs/default.

    Args:
        precision: auto for what suits the processor, or one of Lightning's.
        kwargs: Its other options.
    """

    def __init__(self, precision: PrecisionName | None = "auto", **kwargs: Any) -> None:
        filter_logs()
        require_supported(kwargs.get("strategy", "auto"))  # Lightning asks for its packages first
        is_bare = bool(kwargs.get("barebones"))  # for measuring Lightning's own overhead
        for name, value in ({} if is_bare else TRAINER_DEFAULTS).items():
            kwargs.setdefault(name, value)
        kwargs |= launched_options(kwargs, find_launch(os.environ))
        options = SimpleNamespace(**{**LIGHTNINGS, **kwargs, "precision": precision})
        if fill_epochs(options):
            kwargs["max_epochs"] = options.max_epochs
        kwargs["default_root_dir"] = root = str(options.default_root_dir or ROOT)
        if not is_bare:
            kwargs["logger"] = loggers_of_run(options.logger, root)
        callbacks = options.callbacks or []
        self.given_callbacks = [*callbacks] if isinstance(callbacks, list) else [callbacks]
        self.precision_is_auto = precision == AUTO
        require_supported_plugins(plugins_of(options))
        super().__init__(precision=precision_option(options, AUTO), **kwargs)
        check_devices(self)


def attach(trainer: Any, module: Any) -> None:
    """Prepare a trainer for a ``CausalLMModule``: callbacks, checkpoints, weights of tokens.

    Called whenever Lightning gives the module its trainer, at the start of each ``fit``,
    ``validate``, ``test`` and ``predict``. It is no hook, so no subclass can override it and leave
    a part out. Nothing is done for a module that is a part of the module that is trained.

    Raises:
        UserError: If the strategy, or another part of the trainer, does not work with adapters.
    """
    if trainer is None or trainer.lightning_module is not module:
        return
    require_supported(trainer.strategy)
    require_supported_parts(trainer)
    settle_resources(trainer)
    warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # wanted
    if isinstance(trainer, Trainer):
        _settle_precision(trainer, module)
    elif trainer.state.fn == "fit":
        _limit_epochs(trainer)
    given = getattr(trainer, "given_callbacks", [])
    trainer.callbacks = with_default_callbacks(trainer.callbacks, given)
    let_spikes_resume(trainer.callbacks)
    trainer.strategy.checkpoint_io = _checkpoint_io(trainer.strategy, module)
    steps = trainer.fit_loop.epoch_loop
    if not isinstance(steps.automatic_optimization, TokenWeightedOptimization):
        progress = steps.automatic_optimization.optim_progress
        steps.automatic_optimization = TokenWeightedOptimization(trainer)
        steps.automatic_optimization.optim_progress = progress


def _limit_epochs(trainer: Any) -> None:
    """Give a Trainer of Lightning's own, with no limit, the epochs of ``fit`` in place of 1,000."""
    loop = trainer.fit_loop
    is_timed = any(isinstance(callback, Timer) for callback in trainer.callbacks)
    limits = SimpleNamespace(
        max_epochs=loop.max_epochs,
        max_steps=trainer.max_steps,
        max_time=True if is_timed else None,
        min_steps=trainer.min_steps,
        min_epochs=loop.min_epochs,
    )
    if fill_epochs(limits):
        loop.max_epochs = limits.max_epochs
        rank_zero_info(
            f"no max_epochs: {limits.max_epochs} epochs, in place of Lightning's 1,000; "
            "peft_lightning.Trainer has all defaults of fit"
        )


def _settle_precision(trainer: Trainer, module: Any) -> None:
    """Let ``auto`` be float32 for a module whose frozen weights are to be float32."""
    wanted = resolve_precision(AUTO, trainer.accelerator, module.dtype_name)
    if trainer.precision_is_auto and wanted == "32-true" != trainer.precision:
        trainer.strategy.precision_plugin = Precision()


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
    is_asked_for = given is module.trainer._accelerator_connector.checkpoint_io
    is_default = type(given) is TorchCheckpointIO and not is_asked_for
    if given is None or is_default or type(given) is AdapterCheckpointIO:
        return own
    if module.trainer.state.fn == "fit":
        rank_zero_info(
            f"checkpoints are written by {type(given).__name__}, not as adapter folders: generate, "
            "merge and the other commands cannot read them"
        )
    return given


def plugins_of(trainer: Any) -> list[Any]:
    """Return the plugins among a trainer's options."""
    return trainer.plugins if isinstance(trainer.plugins, list) else [trainer.plugins]


def precision_option(trainer: Any, dtype: str) -> Any:
    """Return the ``precision`` to build a trainer with, resolved for this machine.

    Args:
        trainer: Its options.
        dtype: Of the base's frozen weights, as given.
    """
    if trainer.precision == AUTO and any(isinstance(p, Precision) for p in plugins_of(trainer)):
        return None  # the plugin says it
    return resolve_precision(trainer.precision, trainer.accelerator, dtype)
