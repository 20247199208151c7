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

from peft_lightning.checkpoint import validation_due


def step_boundary(trainer: Any, before_validation: bool = False) -> dict[str, Any]:
    """Return what a checkpoint of this moment has that the next step changes.

    Args:
        trainer: After an optimizer step.
        before_validation: Whether a resumed run begins with a validation.

    Returns:
        Entries of a checkpoint, none of which a later change to the run reaches.
    """
    connector = trainer._checkpoint_connector
    with validation_due(trainer) if before_validation else nullcontext():
        loops = connector._get_loops_state_dict()
    state = {
        "epoch": trainer.current_epoch,
        "global_step": trainer.global_step,
        "loops": loops,
        "callbacks": copy.deepcopy(call._call_callbacks_state_dict(trainer)),
    }
    if (data := trainer.datamodule) is not None and (position := data.state_dict()):
        state[type(data).__qualname__] = copy.copy(position)
    return state
