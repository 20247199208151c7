"""SanityChecks: a run that trains nothing, or nonsense, is an error that says what to look at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from peft_lightning.base_model.positions import positions_of
from peft_lightning.messages import RunError, UserError
from peft_lightning.training.checkpoint_facts import check_base
from peft_lightning.training.cluster.fsdp2 import fingerprint


class SanityChecks(Callback):
    """Watches for a loss that is not finite, labels that are missing, weights that do not move."""

    def __init__(self) -> None:
        self._sums: list[Tensor] | None = None
        self._first_step = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        check_positions(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit":
            check_positions(trainer, pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        check_positions(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["base_fingerprint"] = pl_module.fingerprint

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Compare the base with that of the checkpoint, whatever plugin has read it."""
        if "base_fingerprint" in checkpoint:
            check_base(pl_module, checkpoint)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._sums, self._first_step = self._fingerprints(pl_module), trainer.global_step

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.global_step == self._first_step or self._sums is None:
            return
        if all(map(torch.equal, self._sums, self._fingerprints(pl_module))):
            rate = trainer.optimizers[0].param_groups[0]
            raise RunError(
                f"no trained parameter moved in {trainer.global_step - self._first_step} steps: "
                f"look at the learning rate (initial {rate.get('initial_lr', rate['lr'])}, last "
                f"{rate['lr']}), the precision ({trainer.precision}; bf16-true rounds small "
                "updates away) and gradient_clip_val"
            )

    @staticmethod
    def _fingerprints(module: Any) -> list[Tensor]:
        return [fingerprint(p) for p in module.trainable_parameters()]

    @staticmethod
    def check_weights(tokens: Tensor | float, batch: Any) -> None:
        """Raise UserError if ``nll`` counts tokens although the rows give them weights.

        Args:
            tokens: The count that ``nll`` returns; the sum of the weights is a float.
            batch: The batch, with ``loss_weights`` if a weight is neither 0 nor 1.
        """
        has_weights = isinstance(batch, Mapping) and "loss_weights" in batch
        if has_weights and not torch.as_tensor(tokens).is_floating_point():
            raise UserError(
                "the rows have weights in the loss, and nll counts tokens: multiply each token's "
                "loss by labelled_weights(batch), and return the sum of these weights as the count"
            )

    @staticmethod
    def check_step(module: Any, nll: float, tokens: float, norm: Tensor) -> None:
        """Check an optimizer step before it is taken.

        Args:
            module: The module that trains.
            nll: Summed loss of the step in nats.
            tokens: Labelled tokens of the step, or the sum of their weights.
            norm: Norm of all gradients.

        Raises:
            RunError: If the loss is not finite, or the first step has no labelled token or
                no gradient.
        """
        step = module.trainer.global_step
        if not math.isfinite(nll):
            raise RunError(
                f"the loss of step {step} is {nll}: look at the learning rate "
                f"({module.trainer.optimizers[0].param_groups[0]['lr']:.3g}), the precision "
                f"({module.trainer.precision}) and the rows of this step; the last checkpoint is "
                "from before it"
            )
        if step > 0:
            return
        if tokens == 0:
            raise RunError(
                "the first step has no labelled token, so there is nothing to learn from: look "
                "at data.train_on, data.format and data.max_length (a long prompt may leave no "
                "room for the answer)"
            )
        if norm == 0:
            raise RunError(
                f"all gradients of the first step are zero: {module.adapter} is not part of "
                "what the loss depends on; look at target_modules or, for virtual tokens, at a "
                "sliding window that they lie outside of"
            )


def check_positions(trainer: L.Trainer, module: Any) -> None:
    """Compare the longest row with the positions of the model, before the first batch.

    Raises:
        UserError: If a row is longer than the learned positions. If positions are computed, as
            rotary ones are, the row is only said to be longer than those the model knows.
    """
    sizes: dict[str, Any] = getattr(trainer.datamodule, "sizes", {})  # type: ignore[attr-defined]
    virtual = getattr(module.adapter, "num_virtual_tokens", 0)
    longest = max((size.get("longest_row", 0) for size in sizes.values()), default=0)
    positions = positions_of(module.model)
    if positions.number is None or longest + virtual <= positions.number:
        return
    length = f"{longest} tokens" + (f" and {virtual} virtual ones" if virtual else "")
    message = (
        f"the longest row has {length}, but the model {positions.number} positions; data.max_length"
        f" {positions.number - virtual} leaves longer rows out"
    )
    if positions.learned:
        raise UserError(message)
    rank_zero_info(f"{message} (it computes them, but has never seen such long texts)")
