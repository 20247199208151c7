"""P-tuning: virtual tokens from a trained encoder (Liu et al. 2021, arXiv:2103.10385)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from peft_lightning.adapters.prompts.base import HF_DEFAULTS, TRAINS
from peft_lightning.adapters.prompts.embedding_prompt import EmbeddingPrompt
from peft_lightning.adapters.prompts.encoders import lstm_encoder, mlp_encoder
from peft_lightning.messages import check_choice


@dataclass(frozen=True)
class PTuning(EmbeddingPrompt):
    """Puts virtual tokens before the text that an encoder makes, which is trained.

    What is saved are the virtual tokens, as HF PEFT reads them, and the encoder, from which
    training goes on. A folder of HF PEFT has no encoder: there the rows themselves are trained.

    Args:
        num_virtual_tokens: Number of virtual tokens, at least 1.
        encoder_reparameterization_type: The encoder's architecture: ``MLP`` or ``LSTM``.
        encoder_hidden_size: The encoder's hidden size; None for the width of the embeddings.
        encoder_num_layers: Layers of the ``LSTM``; ``MLP`` always has three linear ones.
        encoder_dropout: Dropout between the layers of the ``LSTM``, in [0, 1).
        trains_encoder: Whether an encoder is trained, or the virtual tokens that it has made.

    Raises:
        UserError: If a value is out of its range.
    """

    peft_type: ClassVar[str] = "P_TUNING"
    learning_rate: ClassVar[float] = 1e-3
    hf_defaults: ClassVar[dict[str, Any]] = {
        **HF_DEFAULTS,
        "peft_type": "P_TUNING",
        "encoder_reparameterization_type": "MLP",
        "encoder_hidden_size": None,
        "encoder_num_layers": 2,
        "encoder_dropout": 0.0,
    }

    own_options: ClassVar[frozenset[str]] = frozenset({TRAINS})

    encoder_reparameterization_type: str = "MLP"
    encoder_hidden_size: int | None = None
    encoder_num_layers: int = 2
    encoder_dropout: float = 0.0
    trains_encoder: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds = ("MLP", "LSTM")
        check_choice("encoder_reparameterization_type", self.encoder_reparameterization_type, kinds)
        size = self.encoder_hidden_size
        self._require(size is None or size >= 1, "encoder_hidden_size", "at least 1")
        self._require(self.encoder_num_layers >= 1, "encoder_num_layers", "at least 1")
        self._require(0 <= self.encoder_dropout < 1, "encoder_dropout", "in [0, 1)")

    def _encoder(self, width: int) -> nn.Module:
        rows, hidden = self.num_virtual_tokens, self.encoder_hidden_size or width
        if self.encoder_reparameterization_type == "MLP":
            return mlp_encoder(rows, width, hidden)
        options = (self.encoder_num_layers, self.encoder_dropout)
        return lstm_encoder(rows, width, hidden, *options)

    def _initial(self, model: Any, embedding: Any) -> Tensor:
        """Return what an encoder makes before it is trained, (n, dim)."""
        made: Tensor = self._encoder(_width(embedding))()
        return made

    def _insert(self, model: Any, initialise: bool) -> None:
        if not self.trains_encoder:
            super()._insert(model, initialise)
            return
        width = _width(model.get_input_embeddings())
        self._register_encoder(model, lambda: self._encoder(width), initialise)

    def hf_config(self, model: Any) -> dict[str, Any]:
        width = _width(model.get_input_embeddings())
        return {
            **super().hf_config(model),
            "encoder_hidden_size": self.encoder_hidden_size or width,
        }


def _width(embedding: Any) -> int:
    width: int = embedding.weight.shape[1]
    return width
