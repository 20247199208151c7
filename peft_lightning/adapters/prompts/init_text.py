"""The text that virtual tokens begin as: its tokens, cut or repeated to their number."""

from __future__ import annotations

from typing import Any

from peft_lightning.messages import UserError


def text_ids(text: str, count: int, path: str, option: str, **options: Any) -> list[int]:
    """Return the first ``count`` tokens of a text, which is repeated if it has fewer.

    Args:
        text: The text.
        count: Number of tokens.
        path: Hub id or folder of the tokenizer.
        option: What gave the text, for an error.
        options: Of the tokenizer.

    Raises:
        UserError: If the tokenizer cannot be loaded, or the text has no tokens.
    """
    from transformers import AutoTokenizer  # only here: the rest needs torch alone

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        if "trust_remote_code" in str(error):
            reason = "it brings code of its own, and trust_remote_code is never set here"
        raise UserError(
            f"{option} cannot load the tokenizer {path}: {reason}; give a hub id or folder as "
            "tokenizer_name_or_path"
        ) from error
    ids: list[int] = tokenizer(text)["input_ids"]
    if not ids:
        raise UserError(f"{option} {text!r} has no tokens")
    return (ids * -(-count // len(ids)))[:count]


def tokenizer_path(model: Any, given: str | None, option: str) -> str:
    """Return the tokenizer that was given, or the base's own.

    Raises:
        UserError: If there is none.
    """
    path: str | None = given or getattr(model.config, "name_or_path", None)
    if not path:
        raise UserError(
            f"{option} needs tokenizer_name_or_path: the base model was not loaded from a place "
            "that has a tokenizer"
        )
    return path
