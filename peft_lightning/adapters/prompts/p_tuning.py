"""P-tuning: a soft prompt that an encoder made (Liu et al. 2021, arXiv:2103.10385)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from peft_lightning.adapters.prompts.base import HF_DEFAULTS
from peft_lightning.adapters.prompts.soft_prompt import SoftPrompt


@dataclass(frozen=True)
class PTuning(SoftPrompt):
    """Trains on the virtual tokens of a folder that HF PEFT's p-tuning wrote.

    The folder holds what the encoder made, one row for each virtual token: that is trained on,
    as in prompt tuning. The encoder is not in it, so nothing is trained from the beginning.

    Args:
        num_virtual_tokens: How many, at least 1.
        encoder_reparameterization_type: What the encoder was: ``MLP`` or ``LSTM``. This and the
            next three are kept for HF PEFT and change nothing.
        encoder_hidden_size: Its width.
        encoder_num_layers: Its layers.
        encoder_dropout: Its dropout.
    """

    peft_type: ClassVar[str] = "P_TUNING"
    learning_rate: ClassVar[float] = 1e-2
    hf_defaults: ClassVar[dict[str, Any]] = {
        **HF_DEFAULTS,
        "peft_type": "P_TUNING",
        "encoder_reparameterization_type": "MLP",
        "encoder_hidden_size": None,
        "encoder_num_layers": 2,
        "encoder_dropout": 0.0,
    }

    encoder_reparameterization_type: str = "MLP"
    encoder_hidden_size: int | None = None
    encoder_num_layers: int = 2
    encoder_dropout: float = 0.0

    def _initial(self, model: Any, embedding: Any) -> Tensor:
        raise self._no_start()
