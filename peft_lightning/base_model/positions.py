"""How many positions a model has, and whether a longer row is an error or only unusual."""

from dataclasses import dataclass
from typing import Any

from torch import nn

LEARNED_POSITIONS = ("wpe", "embed_positions", "position_embeddings", "embed_position")

# of configs; MPT has the second, Whisper the third
_NUMBER = ("max_position_embeddings", "max_seq_len", "max_target_positions")


@dataclass(frozen=True)
class Positions:
    """The positions of a causal LM.

    Args:
        number: Positions that it was made for; None if its config does not say.
        learned: Whether each has a learned embedding (GPT-2, OPT): the model cannot compute more.
            Rotary and relative positions go on, but the model has never seen longer texts.
    """

    number: int | None
    learned: bool


def positions_of(model: Any) -> Positions:
    """Return the positions of ``model``, a causal LM of transformers."""
    config = model.config.get_text_config()
    number = next((n for name in _NUMBER if (n := getattr(config, name, None)) is not None), None)
    number = None if number is not None and number < 1 else number  # -1: XLNet has no limit
    embeddings = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in LEARNED_POSITIONS
    ]
    for embedding in embeddings:
        if number is not None and embedding.padding_idx is not None:
            # as in RoBERTa, whose first position is the one after that of padding
            number = min(number, embedding.num_embeddings - embedding.padding_idx - 1)
    if embeddings and number is not None:  # ProphetNet's predicting streams are ahead of its text
        number -= getattr(config, "ngram", 1) - 1
    return Positions(number, bool(embeddings))
