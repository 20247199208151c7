"""Forgetting: how much worse the model becomes on general text while it learns its task."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from peft_lightning.adapters import attached_adapter
from peft_lightning.messages import UserError
from peft_lightning.training.base_alone import base_alone, why_not_alone
from peft_lightning.training.general_text import TextLoss, general_text_loss, general_texts


class Forgetting(Callback):
    """Logs the loss on general text at each validation, if the module has ``forgetting``.

    ``forgetting/loss`` is in nats per token, ``forgetting/bits_per_byte`` the same in bits per byte
    of text, and ``forgetting/increase`` the first minus the loss of the base alone, which is
    computed before training. Above 0 the model has become worse at what it was not trained on.
    """

    def __init__(self) -> None:
        self._base: float | None = None  # nats per token
        self._texts: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        return {"base": self._base}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._base = state_dict["base"]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Compute the loss of the base alone.

        Raises:
            UserError: If that cannot be had, or the file has no text.
        """
        given = pl_module.forgetting
        if given is False:
            return
        self._texts = general_texts(None if given is True else given)
        if (reason := why_not_alone(trainer, pl_module)) and self._base is None:
            raise UserError(
                f"model.forgetting compares with the base, which cannot be had alone: {reason}; "
                "set model.forgetting to false"
            )
        if self._base is not None:
            return
        with base_alone(pl_module):
            found = self._loss(pl_module)
        self._base = found.per_token
        rank_zero_info(
            f"general text: {found.per_token:.4g} nats per token, {found.bits_per_byte:.4g} bits "
            f"per byte of the base alone, over {found.tokens:,} tokens"
        )

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self._base is None or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        found = self._loss(pl_module)
        values = {
            "loss": found.per_token,
            "bits_per_byte": found.bits_per_byte,
            "increase": found.per_token - self._base,
        }
        pl_module.log_dict({f"forgetting/{name}": value for name, value in values.items()})

    def _loss(self, module: Any) -> TextLoss:
        tokenizer = module.load_tokenizer()
        return general_text_loss(
            module.model, attached_adapter(module.model), tokenizer, self._texts
        )
