"""The state of a run between two optimizer steps, remembered while the next one is computed.

Weights, the optimizer and its learning rate change in an optimizer step alone. All else that a
checkpoint has changes within a step too: random generators, the position in the data, the loops'
progress, the counters of callbacks.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

from lightning.pytorch.trainer import call
from torch import Tensor

from peft_lightning.training.module_state import added_buffers
from peft_lightning.training.step_progress import validation_due

PLAIN = {int, float, bool, str, type(None)}


def step_boundary(trainer: Any, before_validation: bool = False) -> dict[str, Any]:
    """Return what a checkpoint of this moment has that the next step changes.

    Args:
        trainer: After an optimizer step.
        before_validation: Whether a resumed run begins with a validation.

    Returns:
        Entries of a checkpoint, none of which a later change to the run reaches. Of the loops it
        is that of training alone.
    """
    with validation_due(trainer) if before_validation else nullcontext():
        progress = trainer.fit_loop.state_dict()
    state = {
        "epoch": trainer.current_epoch,
        "global_step": trainer.global_step,
        "loops": {"fit_loop": progress},
        "callbacks": copied(call._call_callbacks_state_dict(trainer)),
        "buffers": added_buffers(trainer.lightning_module),
    }
    if (data := trainer.datamodule) is not None and (position := data.state_dict()):
        state[type(data).__qualname__] = dict(position)  # all in it but the position is fixed
    return state


def copied(value: Any) -> Any:
    """Return a copy of a state, as ``copy.deepcopy`` does in five times the time."""
    kind = type(value)
    if kind in PLAIN:
        return value
    if kind is dict:
        return {name: copied(part) for name, part in value.items()}
    if kind in (list, tuple):
        return kind([part if type(part) in PLAIN else copied(part) for part in value])
    return value.detach().clone() if kind is Tensor else copy.deepcopy(value)
