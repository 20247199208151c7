"""What can be asked of a model: its positions, its tokens, and the options of generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft_lightning.base_model.positions import positions_of
from peft_lightning.inference.prompt_inputs import PreparesInputs, prompt_inputs
from peft_lightning.messages import UserError


class UnknownTokenError(UserError):
    """A prompt has a token that the model has no embedding for."""


def check_options(
    max_new_tokens: int, batch_size: int, temperature: float, top_p: float, seed: int = 0
) -> None:
    """Raise UserError if an option of generation is out of its range."""
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature must be 0 or more, got {temperature}")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p must be above 0 and at most 1, got {top_p}")
    if not -(2**63) <= seed < 2**64:  # what torch takes
        raise UserError(f"seed must be a whole number of 64 bits, got {seed}")


def most_prompt_tokens(
    model: Any, adapter: PreparesInputs | None, max_new_tokens: int
) -> int | None:
    """Return how many tokens a prompt may have; None if the model does not say.

    Args:
        model: The model with ``adapter`` attached.
        adapter: Whose virtual tokens take positions too; None for the base.
        max_new_tokens: Largest number of tokens of an answer.

    Raises:
        UserError: If the answer alone exceeds the model's positions.
    """
    positions = positions_of(model).number
    if positions is None:
        return None
    virtual = prompt_inputs(model, adapter, [[0]], 0)["attention_mask"].shape[1] - 1
    most = int(positions) - virtual - max_new_tokens
    if most < 1:
        raise UserError(
            f"max_new_tokens {max_new_tokens} leave no room for a prompt in the model's {positions}"
            f" positions{f', {virtual} of which are virtual tokens' if virtual else ''}: set it to "
            "less"
        )
    return most


def check_prompts(
    model: Any,
    adapter: PreparesInputs | None,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
) -> None:
    """Raise UserError for the first prompt that a model cannot answer, before any is answered.

    Args:
        model: The model with ``adapter`` attached.
        adapter: The adapter; None for the base.
        rows: Token ids of each prompt.
        max_new_tokens: Largest number of tokens of an answer.
    """
    embedding = model.get_input_embeddings()
    known = embedding.weight.shape[0] + getattr(embedding, "extra", 0)
    most = most_prompt_tokens(model, adapter, max_new_tokens) if rows else None
    for number, row in enumerate(rows, start=1):
        if len(row) == 0:
            raise UserError(f"prompt {number} has no tokens")
        if (largest := max(row)) >= known:
            raise UnknownTokenError(
                f"prompt {number} has the token id {largest}, and the model has an embedding for "
                f"{known}: the tokenizer has more tokens than the model"
            )
        if most is not None and len(row) > most:
            raise UserError(f"prompt {number} {too_long(model, len(row), most, max_new_tokens)}")


def too_long(model: Any, length: int, most: int, max_new_tokens: int) -> str:
    """Return what is wrong with a prompt of ``length`` tokens where ``most`` are possible."""
    positions = positions_of(model).number or 0
    virtual = positions - most - max_new_tokens
    besides = f" and {virtual} virtual tokens" if virtual else ""
    return (
        f"has {length} tokens, and with max_new_tokens {max_new_tokens}{besides} it exceeds the "
        f"model's {positions} positions, which leave {most} for a prompt"
    )
