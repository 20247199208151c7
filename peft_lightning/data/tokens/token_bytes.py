"""The bytes of text that each token of a vocabulary stands for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

# whose characters have one to four bytes, so that a wrong rule gives another sum
PROBES = ("a é 한국 😀\n1 b", "Aß — 東京 x, 12  🎉é")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class TokenBytes:
    """The UTF-8 bytes of each token, whose sum over the tokens of a text is that of the text.

    Args:
        lengths: (V + 1,) int64. The bytes of each id; 0 for special tokens, and at the end for all
            ids beyond. A token may be a part of a character.
        begins_with_space: (V + 1,) Whether the first of these bytes is a space.
        adds_space: Whether the tokenizer puts a space before a text that has none, so that the
            first token has a byte that is not in the text.
    """

    lengths: NDArray[np.int64]
    begins_with_space: NDArray[np.bool_]
    adds_space: bool


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> TokenBytes | None:
    """Return the bytes of each token of a vocabulary.

    Byte-level tokens (GPT-2 and its descendants) have a character for each byte. Pieces of
    SentencePiece have their own characters, ``▁`` for a space and ``<0x0A>`` for a byte alone.
    Which of both a tokenizer has is found by tokenizing texts of known lengths.

    Returns:
        The lengths; None for a tokenizer of another kind, which may lose a part of the text.
    """
    encoded = [tokenizer(t, add_special_tokens=False, verbose=False)["input_ids"] for t in PROBES]
    vocabulary = tokenizer.get_vocab()
    added = tokenizer.added_tokens_decoder
    special = {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    names = {i: token for token, i in vocabulary.items()}
    for space, rule in _KINDS.items():

        def length(i: int, rule: Callable[[str], int] = rule) -> int:
            if i in special:
                return 0
            return len(added[i].content.encode()) if i in added else rule(names[i])

        extra = {
            sum(length(i) for i in ids) - len(text.encode())
            for ids, text in zip(encoded, PROBES, strict=True)
        }
        if extra not in ({0}, {1}):
            continue
        lengths = np.zeros(max(names, default=-1) + 2, dtype=np.int64)
        begins = np.zeros(len(lengths), dtype=np.bool_)
        for i, name in names.items():
            lengths[i] = length(i)
            begins[i] = name.startswith(" " if i in added else space)
        return TokenBytes(lengths, begins & (lengths > 0), extra == {1})
    return None


def _bytes_of_piece(piece: str) -> int:
    return 1 if _BYTE.fullmatch(piece) else len(piece.replace("▁", " ").encode())


_KINDS: dict[str, Callable[[str], int]] = {"Ġ": len, "▁": _bytes_of_piece}
