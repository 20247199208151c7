"""The answers of rows: their tokens in the loss, without special tokens."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from peft_lightning.data.tokens.tokenization import TokenizedRow

LOOP_SHARE = 0.6  # of the 4-grams of an answer are repetitions; text of people has a few per cent
LOOP_TOKENS = 32  # a shorter answer may repeat itself, such as a list
NGRAM = 4  # as in "seq-rep-4" of Welleck et al. 2019, arXiv:1908.04319
LONGEST_TEXT = 80  # tokens of an answer whose text is kept
MOST_TEXTS = 1000


@dataclass(frozen=True)
class Answers:
    """The answers of several rows.

    Args:
        hashes: (rows,) uint64, equal for equal answers.
        lengths: (rows,) int32, in tokens.
        prompts: (rows,) uint64, equal for equal tokens before the last answer; 0 for rows without.
        loops: (rows,) whether most of the answer repeats itself.
        texts: The texts of some short answers, by their hash.
    """

    hashes: NDArray[np.uint64]
    lengths: NDArray[np.int32]
    prompts: NDArray[np.uint64]
    loops: NDArray[np.bool_]
    texts: dict[int, str]


class AnswerReader:
    """Finds the answers in tokenized rows.

    Args:
        tokenizer: The tokenizer of the rows.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._is_special = np.zeros(len(tokenizer) + 1, dtype=bool)
        self._is_special[list(tokenizer.all_special_ids)] = True
        self._known: set[int] = set()

    def read(self, rows: Sequence[Sequence[TokenizedRow]]) -> Answers:
        """Return the answers of ``rows``, each a list of sequences."""
        answers = [self._tokens(row) for row in rows]
        lengths = np.array([len(ids) for ids in answers], dtype=np.int32)
        hashes = np.array([hash_of(ids) for ids in answers], dtype=np.uint64)
        texts: dict[int, str] = {}
        for value, ids in zip(hashes.tolist(), answers, strict=True):
            if value in self._known or len(self._known) >= MOST_TEXTS or len(ids) > LONGEST_TEXT:
                continue
            self._known.add(value)
            texts[value] = str(self.tokenizer.decode(ids)).strip()
        prompts = np.array([prompt_hash(row[-1]) for row in rows], dtype=np.uint64)
        return Answers(hashes, lengths, prompts, repeated_share(answers) >= LOOP_SHARE, texts)

    def _tokens(self, row: Sequence[TokenizedRow]) -> NDArray[np.int32]:
        parts = [part.input_ids[part.loss_weights != 0] for part in row]
        ids = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return ids[~self._is_special[ids]]


def hash_of(*arrays: NDArray[Any]) -> int:
    """Return 64 bits of a hash of the bytes of ``arrays``."""
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(array.tobytes())
    return int.from_bytes(digest.digest(), "little")


def prompt_hash(row: TokenizedRow) -> int:
    """Return a hash of the tokens before the last answer; 0 if there is at most BOS before it."""
    in_loss = np.flatnonzero(row.loss_weights)
    gaps = np.flatnonzero(np.diff(in_loss) > 1)
    start = in_loss[gaps[-1] + 1] if len(gaps) else in_loss[0]
    return hash_of(row.input_ids[:start]) if start > 1 else 0


def repeated_share(answers: Sequence[NDArray[np.int32]]) -> NDArray[np.float64]:
    """Return the share of the 4-grams of each answer that it has had before; 0 for short ones."""
    share = np.zeros(len(answers))
    long = [i for i, ids in enumerate(answers) if len(ids) >= LOOP_TOKENS]
    if not long:
        return share
    ids = np.concatenate([answers[i] for i in long]).astype(np.uint64)
    index = np.repeat(np.array(long), [len(answers[i]) for i in long])
    grams = functools.reduce(
        lambda value, k: value * np.uint64(0x9E3779B97F4A7C15) + ids[k : len(ids) - NGRAM + 1 + k],
        range(1, NGRAM),
        ids[: len(ids) - NGRAM + 1],
    )
    inside = index[: len(grams)] == index[NGRAM - 1 :]
    grams, index = grams[inside], index[: len(grams)][inside]
    total = np.bincount(index, minlength=len(answers))
    mixed = grams ^ (index.astype(np.uint64) * np.uint64(0xBF58476D1CE4E5B9))
    _, first = np.unique(mixed, return_index=True)
    distinct = np.bincount(index[first], minlength=len(answers))
    share[long] = 1 - distinct[long] / total[long]
    return share
