"""How many positions a model has, and whether a longer row is an error or only unusual."""

from dataclasses import dataclass
from typing import Any

from torch import nn

LEARNED_POSITIONS = ("wpe", "embed_positions", "position_embeddings", "embed_position")


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
    number = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    learned = any(
        isinstance(module, nn.Embedding) and name.rpartition(".")[2] in LEARNED_POSITIONS
        for name, module in model.named_modules()
    )
    return Positions(number, learned)
