"""A format whose rows have weights in the loss, which follow from their number in the prompt."""

from typing import Any

from peft_lightning.data.rows.conversations import Conversation

WEIGHTS = (0.25, 1.0, 3.0, 0.5, 2.0, 0.75, 1.0, 0.125, 1 / 512, 1 / 1024)  # exact in float32


def weight_of(record: dict[str, Any]) -> float:
    """Return the weight of the answer of a row of ``write_rows``."""
    return WEIGHTS[int(record["prompt"].split()[1]) % len(WEIGHTS)]


def row(record: dict[str, Any]) -> Conversation:
    """Return a row of ``write_rows`` with the weight of its answer."""
    turns = [
        {"role": "user", "content": record["prompt"]},
        {"role": "assistant", "content": record["completion"]},
    ]
    return Conversation(turns, weights=[0.0, weight_of(record)])
