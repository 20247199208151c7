"""P-tuning: virtual tokens from a trained encoder (Liu et al. 2021, arXiv:2103.10385)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from peft_lightning.adapters.prompts.base import HF_DEFAULTS
from peft_lightning.adapters.prompts.embedding_prompt import EmbeddingPrompt


@dataclass(frozen=True)
class PTuning(EmbeddingPrompt):
    """Trains on the virtual tokens of a folder that HF PEFT's p-tuning wrote.

    The folder holds the encoder's output, one row for each virtual token; training continues
    from these rows, as in prompt tuning. The encoder itself is not in the folder, so training
    cannot start without one.

    Args:
        num_virtual_tokens: Number of virtual tokens, at least 1.
        encoder_reparameterization_type: The encoder's architecture: ``MLP`` or ``LSTM``. This and
            the next three options are kept for HF PEFT and have no effect.
        encoder_hidden_size: The encoder's hidden size.
        encoder_num_layers: The encoder's number of layers.
        encoder_dropout: The encoder's dropout.
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
        raise self._no_encoder_error()
