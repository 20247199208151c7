"""Prompts that leave a model no room for an answer: refused, left out, or cut."""

from __future__ import annotations

import sys
from collections.abc import Collection

from peft_lightning.inference.limits import most_prompt_tokens, too_long
from peft_lightning.inference.load import InferenceModel
from peft_lightning.messages import UserError

TRUNCATIONS = ("error", "drop", "truncate")


def fit_to_model(
    loaded: InferenceModel,
    name: str,
    rows: list[list[int]],
    asked: Collection[int],
    max_new_tokens: int,
    truncation: str,
) -> list[int]:
    """Find the prompts that are too long, before any is answered; return those to leave out.

    Args:
        loaded: The model.
        name: The adapter that answers.
        rows: Token ids of each prompt; those to cut are cut in place, and keep their BOS token.
        asked: The indices of those that the adapter answers.
        max_new_tokens: Largest number of tokens of an answer.
        truncation: One of ``TRUNCATIONS``.

    Raises:
        UserError: If there is one, and ``truncation`` is error.
    """
    model, tokenizer = loaded.model, loaded.tokenizers[name]
    most = most_prompt_tokens(model, loaded.bank.use(name), max_new_tokens)
    long = [] if most is None else [i for i in sorted(asked) if len(rows[i]) > most]
    if not long or most is None:
        return []
    first = f"prompt {long[0] + 1} {too_long(model, len(rows[long[0]]), most, max_new_tokens)}"
    count = f"{len(long)} of {len(asked)} prompts"
    if truncation == "error":
        others = f", as {count} do" if len(long) > 1 else ""
        raise UserError(
            f"{first}{others}: --truncation drop leaves such prompts out, truncate cuts their "
            "beginning off"
        )
    if truncation == "drop":
        print(f"{count} are too long and get no answer: {first}", file=sys.stderr)
        return long
    print(f"of {count} the beginning is cut off: {first}", file=sys.stderr)
    for i in long:
        row = rows[i]
        start = row[:1] if row[0] == tokenizer.bos_token_id else []
        rows[i] = [*start, *row[len(row) - most + len(start) :]]
    return []
