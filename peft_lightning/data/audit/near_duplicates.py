"""Near duplicates among a million texts: MinHash signatures, and buckets of equal parts of them.

The similarity of two texts is the Jaccard index of their sets of shingles (Broder 1997). A
signature is made in one pass over the shingles: each falls into one of 64 bins by its hash, and the
smallest hash of a bin is kept (Li, Owen and Zhang 2012, "One permutation hashing"); an empty bin
takes the value of another one (Shrivastava 2017, "Optimal densification", arXiv:1703.04664). Two
signatures agree in each bin with a probability that is the similarity. Texts that agree in all four
bins of one of 16 bands are compared by all 64 bins.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from peft_lightning.data.audit.shingles import Texts, telling_shingles

BINS = 64
BANDS = 16
THRESHOLD = 0.7  # a text of 30 words in which one was replaced is about 0.8
_EMPTY = np.uint32(0xFFFFFFFF)
_ATTEMPTS = 64


def signatures(texts: Texts, common: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the signature of each text, (texts, BINS); zeros for a text without shingles.

    Args:
        texts: The texts.
        common: Shingles that do not count, as ``common_shingles`` returns them.
    """
    hashes, index = telling_shingles(texts, common)
    number = len(texts.ends)
    least = np.full(number * BINS, _EMPTY)
    np.minimum.at(least, index * BINS + (hashes >> np.uint32(26)), hashes)
    table = _fill_empty_bins(least.reshape(number, BINS))
    # of the smallest hash the lower bits, which it says nothing about; 1 to 255, since 0 is no text
    signature = (table % np.uint32(255) + 1).astype(np.uint8)
    signature[table[:, 0] == _EMPTY] = 0
    return signature


def _fill_empty_bins(table: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Let each empty bin take the value of a random one that is not empty, the same in all rows."""
    empty = table == _EMPTY
    filled = table.copy()
    donors = np.random.default_rng(0).integers(0, BINS, (_ATTEMPTS, BINS))
    rows, bins = np.nonzero(empty & ~empty.all(axis=1, keepdims=True))
    for attempt in range(_ATTEMPTS):
        found = table[rows, donors[attempt][bins]]
        there = found != _EMPTY
        filled[rows[there], bins[there]] = found[there]
        rows, bins = rows[~there], bins[~there]
        if not len(rows):
            return filled
    filled[rows, bins] = table[rows].min(axis=1)
    return filled


def similarity(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[Any]:
    """Estimate the similarity of texts by their signatures, (..., BINS) each."""
    agreed = (one == other).mean(axis=-1)
    chance = 1 / 255
    return np.maximum(0, (agreed - chance) / (1 - chance))  # of equal bytes one in 255 is chance


def near_duplicates(signature: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Find for each text an earlier one that is similar to it, or equal.

    Args:
        signature: (texts, BINS) of all texts, zeros for those that are not compared.

    Returns:
        (texts,) the index of the earliest text that was found, -1 where there is none.
    """
    number = len(signature)
    partner = np.full(number, number, dtype=np.int64)
    compared = np.flatnonzero(signature[:, 0])
    bands = signature.reshape(number, BANDS, BINS // BANDS)
    for band in range(BANDS):
        keys = np.ascontiguousarray(bands[compared, band]).view(np.uint32)[:, 0]
        order = np.argsort(keys, kind="stable")  # within a bucket the earliest text is the first
        starts = np.flatnonzero(np.diff(keys[order], prepend=~keys[order][:1]))
        first = np.repeat(starts, np.diff(starts, append=len(order)))
        place = np.arange(len(order))
        for other in (first, np.maximum(first, place - 1)):
            inside = np.flatnonzero(other < place)
            later, earlier = compared[order[inside]], compared[order[other[inside]]]
            _keep_similar(signature, later, earlier, partner)
    return np.where(partner < number, partner, -1)


def _keep_similar(
    signature: NDArray[np.uint8],
    later: NDArray[np.int64],
    earlier: NDArray[np.int64],
    partner: NDArray[np.int64],
) -> None:
    better = earlier < partner[later]
    later, earlier = later[better], earlier[better]
    for start in range(0, len(later), 2**16):  # 8 MiB at a time
        these, those = later[start : start + 2**16], earlier[start : start + 2**16]
        similar = similarity(signature[these], signature[those]) >= THRESHOLD
        partner[these[similar]] = np.minimum(partner[these[similar]], those[similar])
