"""Shingles of texts, the pieces of eight characters in them, as 32-bit hashes in one array.

Texts are compared by their shingles and not by their tokens, so that what a chat template prints
around them does not make any two rows similar.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LENGTH = 8  # characters: about a word and a half, or a phrase of Chinese
FEW = 5  # shingles; a text that has fewer besides the common ones is compared by all of them
COMMON_SHARE = 0.1  # of the rows; shingles in more of them are boilerplate, such as an instruction
COMMON_ROWS = 10  # and in at least so many of them
TABLE_BITS = 20

_SPACES = np.array([ord(c) for c in "\t\n\v\f\r \u00a0\u3000"], dtype=np.uint32)


@dataclass(frozen=True)
class Texts:
    """Several texts as one array of code points.

    Args:
        codes: (characters of all texts,) uint32.
        ends: (texts,) int64, where each text ends in ``codes``.
    """

    codes: NDArray[np.uint32]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Texts":
        """Encode ``texts``; lone surrogates are kept."""
        joined = "".join(texts).encode("utf-32-le", "surrogatepass")
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        return cls(np.frombuffer(joined, dtype=np.uint32), ends)

    def index(self) -> NDArray[np.int64]:
        """Return the text of each character, (characters,)."""
        return np.repeat(np.arange(len(self.ends)), np.diff(self.ends, prepend=0))


def shingles(texts: Texts) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Return the hashes of all shingles and the text of each of them, (shingles,) each.

    Case does not matter, and white space counts as one space. A text of fewer than ``LENGTH``
    characters has no shingle.

    Args:
        texts: The texts.
    """
    codes, index = texts.codes.copy(), texts.index()
    codes[(codes >= 65) & (codes <= 90)] += 32  # A to Z
    space = np.isin(codes, _SPACES)
    codes[space] = 32
    repeated = space.copy()
    repeated[1:] &= space[:-1] & (index[1:] == index[:-1])
    repeated[:1] = False
    if repeated.any():
        codes, index = codes[~repeated], index[~repeated]
    if len(codes) < LENGTH:
        return np.empty(0, np.uint32), np.empty(0, np.int64)
    hashes = codes * np.uint32(0x9E3779B1)
    for step in (1, 2, 4):  # of 1, 2, 4 and then 8 characters
        hashes = hashes[:-step] * np.uint32(0x85EBCA6B) + hashes[step:]
        hashes ^= hashes >> np.uint32(15)
    hashes *= np.uint32(0xC2B2AE35)  # the last steps of MurmurHash3
    hashes ^= hashes >> np.uint32(13)
    hashes *= np.uint32(0x27D4EB2F)
    hashes ^= hashes >> np.uint32(16)
    inside = index[: len(hashes)] == index[LENGTH - 1 :]
    return hashes[inside], index[: len(hashes)][inside]


def common_shingles(texts: Sequence[str]) -> NDArray[np.bool_]:
    """Return which shingles are in so many of ``texts`` that they tell nothing about one.

    They are those of an instruction that many rows share. Of fewer than 100 texts, more than half
    must have them, and at least three.

    Args:
        texts: The texts of the first rows of a source.

    Returns:
        (2 ** TABLE_BITS,), by the upper bits of the hash.
    """
    table = np.zeros(2**TABLE_BITS, dtype=bool)
    hashes, index = shingles(Texts.of(texts))
    pairs = hashes.astype(np.uint64) << np.uint64(32) | index.astype(np.uint64)
    pairs.sort()  # np.unique, which hashes, takes five times as long
    pairs = pairs[np.flatnonzero(np.diff(pairs, prepend=~pairs[:1]))] >> np.uint64(32)
    starts = np.flatnonzero(np.diff(pairs, prepend=~pairs[:1]))
    distinct, counts = pairs[starts], np.diff(starts, append=len(pairs))
    least = (
        max(COMMON_ROWS, COMMON_SHARE * len(texts))
        if len(texts) >= COMMON_ROWS / COMMON_SHARE
        else max(2, len(texts) / 2)
    )
    table[distinct[counts > least] >> np.uint64(32 - TABLE_BITS)] = True
    return table


def telling_shingles(
    texts: Texts, common: NDArray[np.bool_]
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Return the shingles without the common ones, as ``shingles`` does.

    Args:
        texts: The texts.
        common: As ``common_shingles`` returns them. A text of hardly anything else keeps its own.
    """
    hashes, index = shingles(texts)
    if not common.any():
        return hashes, index
    telling = ~common[hashes >> np.uint32(32 - TABLE_BITS)]
    few = np.bincount(index[telling], minlength=len(texts.ends)) < FEW
    kept = telling | few[index]
    return hashes[kept], index[kept]
