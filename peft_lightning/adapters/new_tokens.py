"""Tokens that are added for a task: in the tokenizer, with their ids and where they start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peft_lightning.messages import UserError, shortened

NewTokens = dict[str, dict[str, Any]]  # text -> its "id", and as "pieces" the ids it was before


def read_new_tokens(given: Any) -> list[str] | NewTokens | None:
    """Return ``given`` tokens, or those of the file that it names, one a line.

    Raises:
        UserError: If the file is not there, or a token is blank, or there twice.
    """
    if isinstance(given, str):
        try:
            lines = Path(given).expanduser().read_text(encoding="utf-8-sig").splitlines()
        except (FileNotFoundError, IsADirectoryError):
            raise UserError(
                f"new_tokens {given!r} is no file; one token alone goes in a list: [{given!r}]"
            ) from None
        given = [line for line in lines if line]
    if given is None or isinstance(given, Mapping):
        # a JSON file has them in another order
        return dict(sorted(given.items(), key=lambda item: item[1]["id"])) if given else None
    tokens = list(given)
    bad = [t for t in tokens if not isinstance(t, str) or not t.strip()]
    twice = sorted({str(t) for t in tokens if tokens.count(t) > 1})
    if bad or twice:
        what = f"{twice} are there twice" if twice else f"{bad} are blank"
        raise UserError(f"new_tokens must be different texts, and {what}")
    return tokens or None


def add_new_tokens(tokenizer: Any, tokens: Sequence[str] | NewTokens) -> NewTokens:
    """Add ``tokens`` to ``tokenizer`` and return them with their ids and pieces.

    They are ordinary tokens, not special ones: they stay in decoded answers.

    Args:
        tokenizer: A tokenizer of transformers; changed in place.
        tokens: Texts; or with their ids already, as a saved adapter has them: then the tokenizer
            may have them, and otherwise has to give them these ids.

    Raises:
        UserError: If a text is a token already, or the ids come out otherwise.
    """
    from tokenizers import AddedToken  # only here: the rest needs torch alone

    known = tokenizer.get_vocab()
    if isinstance(tokens, Mapping):
        missing = [text for text in tokens if text not in known]
    elif there := [f"{text!r} (id {known[text]})" for text in tokens if text in known]:
        raise UserError(
            f"new_tokens {shortened(there)} are in the tokenizer already: train them with "
            "trainable_token_indices"
        )
    else:
        missing = list(tokens)
        encoded = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in tokens]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in missing])
    ids = {text: int(tokenizer.convert_tokens_to_ids(text)) for text in tokens}
    if not isinstance(tokens, Mapping):
        pairs = zip(tokens, encoded, strict=True)
        return {text: {"id": ids[text], "pieces": list(pieces)} for text, pieces in pairs}
    wrong = [f"{t!r} {ids[t]} instead of {k['id']}" for t, k in tokens.items() if ids[t] != k["id"]]
    if wrong:
        raise UserError(
            f"this tokenizer gives the adapter's new tokens other ids: {shortened(wrong)}. It is "
            "not the one that the adapter was trained with, or was extended otherwise"
        )
    return dict(tokens)


def initial_rows(weight: Tensor, ids: Sequence[int], pieces: Mapping[int, Sequence[int]]) -> Tensor:
    """Return the rows that tokens start from, (len(ids), dim), in the dtype of ``weight``.

    A new token starts as the mean of the tokens that its text was made of before. So its logit is
    the mean of theirs, and its probability at most the mean of theirs: adding tokens hardly
    changes what the base says. Without pieces it is the mean of all rows. Others start as they
    are.

    Args:
        weight: (V, dim), the base's.
        ids: Of the tokens to train.
        pieces: Of the new ones by id.
    """
    rows = []
    for i in ids:
        if i in pieces:
            made_of = torch.tensor([p for p in pieces[i] if p < len(weight)], dtype=torch.long)
            chosen = weight[made_of.to(weight.device)] if len(made_of) else weight
            rows.append(chosen.detach().float().mean(0).to(weight.dtype))
        else:
            rows.append(weight[i].detach())
    return torch.stack(rows)
