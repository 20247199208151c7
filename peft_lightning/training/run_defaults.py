"""Defaults of a run: options of the Trainer, and epochs. The command line has the same."""

from __future__ import annotations

from typing import Any

from peft_lightning.messages import UserError

EPOCHS = 3  # Lightning's 1,000 would also stretch the learning rate schedule
CLIP_VAL = 1.0  # the default of HF's Trainer
ROOT = "runs/default"

TRAINER_DEFAULTS = {
    "use_distributed_sampler": False,  # the data module orders the rows, to resume
    "enable_model_summary": False,  # training.summary prints a table of the trained parameters
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 5,
    "gradient_clip_val": CLIP_VAL,
}


def fill_epochs(trainer: Any) -> bool:
    """Limit a run to ``EPOCHS`` epochs if it has no other limit.

    Args:
        trainer: The trainer's options; changed in place.

    Returns:
        Whether ``max_epochs`` was set.

    Raises:
        UserError: If only ``min_steps`` is given, which can be longer than ``EPOCHS``.
    """
    if trainer.max_epochs is not None or trainer.max_steps != -1 or trainer.max_time is not None:
        return False
    if trainer.min_steps is not None:
        raise UserError(
            f"trainer.min_steps is {trainer.min_steps}, and nothing says when training ends: give "
            "trainer.max_steps or trainer.max_epochs"
        )
    trainer.max_epochs = max(EPOCHS, trainer.min_epochs or 0)
    return True
