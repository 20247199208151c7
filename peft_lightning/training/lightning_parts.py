"""Callbacks and plugins of Lightning that need help beside an adapter, or cannot work with one."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    Callback,
    ModelPruning,
    SpikeDetection,
    StochasticWeightAveraging,
)
from lightning.pytorch.plugins import BitsandbytesPrecision, DeepSpeedPrecision, FSDPPrecision
from lightning.pytorch.trainer import call
from torch import nn

from peft_lightning.messages import UserError


def require_supported_parts(trainer: Any) -> None:
    """Raise UserError for what cannot work with an adapter, or would be left out silently."""
    for callback in trainer.callbacks:
        if isinstance(callback, ModelPruning):
            raise UserError(
                f"{type(callback).__name__} prunes the base, which is frozen and in no checkpoint: "
                "merge the adapter (python -m peft_lightning merge) and prune the merged model"
            )
    if trainer._model_registry and find_spec("litmodels") is None:
        raise UserError(
            f"model_registry {trainer._model_registry} needs the package litmodels, which is not "
            "installed, and Lightning would upload nothing: install it, or upload a checkpoint by "
            "python -m peft_lightning push"
        )
    require_supported_plugins([trainer.precision_plugin])


def require_supported_plugins(plugins: Sequence[Any]) -> None:
    """Raise UserError for plugins of Lightning that cannot work with an adapter."""
    for plugin in plugins:
        name = type(plugin).__name__
        if isinstance(plugin, BitsandbytesPrecision):
            raise UserError(
                f"trainer.plugins {name} is not used, as a base is quantised when it is loaded: "
                "give model.quantization 4bit or 8bit"
            )
        if not isinstance(plugin, (DeepSpeedPrecision, FSDPPrecision)):
            continue
        raise UserError(
            f"trainer.plugins {name} belongs to strategy {name.removesuffix('Precision').lower()}, "
            f"which does not work with adapters: give trainer.precision {plugin.precision}"
        )


class BuildFirst(Callback):
    """Builds the model before callbacks that look for its parts in their ``setup``.

    ``StochasticWeightAveraging`` copies the module there, ``BaseFinetuning`` freezes parts of it.
    Lightning calls ``configure_model`` after it.
    """

    def setup(self, trainer: Any, pl_module: L.LightningModule, stage: str) -> None:
        """Build the model if such a callback is there.

        Raises:
            UserError: If ``BackboneFinetuning`` is given to a module without a ``backbone``.
        """
        early = (StochasticWeightAveraging, BaseFinetuning)
        if not any(isinstance(callback, early) for callback in trainer.callbacks):
            return
        call._call_configure_model(trainer)
        wants_backbone = any(isinstance(c, BackboneFinetuning) for c in trainer.callbacks)
        if wants_backbone and not isinstance(getattr(pl_module, "backbone", None), nn.Module):
            raise UserError(
                f"BackboneFinetuning needs a module with a backbone; {type(pl_module).__name__} "
                "has none: add a property backbone that returns layers of self.model, in a "
                "subclass, or train the base with the adapter Full"
            )


def unfreeze_as_saved(module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Unfreeze what ``BaseFinetuning`` had unfrozen when a checkpoint was saved.

    Lightning restores the optimizer's groups and leaves their parameters frozen; what is frozen is
    not read from a checkpoint here.

    Args:
        module: With its model built.
        checkpoint: As it was read.
    """
    parameters = dict(module.named_parameters())
    for state in checkpoint.get("callbacks", {}).values():
        groups = state.get("internal_optimizer_metadata", {}) if isinstance(state, dict) else {}
        for group in [group for of_optimizer in groups.values() for group in of_optimizer]:
            for name in group["params"]:
                parameters[name].requires_grad_(True)


def let_spikes_resume(callbacks: Sequence[Callback]) -> None:
    """Let ``SpikeDetection`` read its state, with the losses that it compares with.

    Lightning 2.6 saves them nowhere, and reads them into an attribute that it has not.
    """
    for callback in callbacks:
        if isinstance(callback, SpikeDetection):
            callback.running_mean.persistent(mode=True)
            callback.running = callback.running_mean  # type: ignore[attr-defined]
