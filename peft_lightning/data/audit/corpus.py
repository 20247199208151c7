"""The records of all sources as one corpus, with those of training before those of validation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peft_lightning.data.audit.near_duplicates import near_duplicates
from peft_lightning.data.audit.reading import AuditedSource


class Corpus:
    """The records of all sources, under one index.

    Args:
        sources: The sources.
        splits: The splits of a run, by name: their parts are ``sources``.

    Attributes:
        is_used: (records,) whether a record is used at all.
        in_split: For each split, (records,) whether a record belongs to it.
    """

    def __init__(self, sources: Sequence[AuditedSource], splits: Mapping[str, Any]) -> None:
        self.sources = sources
        self._starts = np.cumsum([0, *(len(s.notes.sequences) for s in sources)])
        self.is_used = self.array("sequences") > 0
        self.in_split = {name: self._members(split) for name, split in splits.items()}

    def array(self, name: str) -> NDArray[Any]:
        """Return an array of the notes, for all records."""
        return np.concatenate([getattr(source.notes, name) for source in self.sources])

    def location(self, index: int) -> str:
        """Return the location of a record."""
        source = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.sources[source].locations[int(index - self._starts[source])]

    def _members(self, split: Any) -> NDArray[np.bool_]:
        members = np.zeros(int(self._starts[-1]), dtype=bool)
        rows, start = split.rows, 0
        for part in split.dataset.datasets:
            first = self._starts[list(self.sources).index(part)]
            own = rows[(rows >= start) & (rows < start + len(part))] - start
            members[first + part.records[own]] = True
            start += len(part)
        return members


@dataclass(frozen=True)
class Copies:
    """Records that are like an earlier one, of training if that is possible.

    Args:
        copies: The indices of the records.
        originals: The index of the earlier record for each.
    """

    copies: NDArray[np.int64]
    originals: NDArray[np.int64]

    def within(self, copies: NDArray[np.bool_], originals: NDArray[np.bool_]) -> "Copies":
        """Return those whose copy and original belong to these records."""
        kept = copies[self.copies] & originals[self.originals]
        return Copies(self.copies[kept], self.originals[kept])


def find_copies(corpus: Corpus) -> tuple[Copies, Copies]:
    """Return the exact duplicates of the corpus, and the near ones that are not exact.

    Args:
        corpus: The records; of those in training and of those not in it, the former come first.
    """
    is_training = corpus.in_split.get("train", corpus.is_used)
    used = np.flatnonzero(corpus.is_used)
    order = used[np.argsort(~is_training[used], kind="stable")]
    exact = _exact(corpus.array("row_hashes")[order])
    near = near_duplicates(corpus.array("signatures")[order])
    near[exact >= 0] = -1
    found = []
    for partner in (exact, near):
        copies = np.flatnonzero(partner >= 0)
        found.append(Copies(order[copies], order[partner[copies]]))
    return found[0], found[1]


def _exact(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the index of the first equal hash for each, -1 for the first itself."""
    order = np.argsort(hashes, kind="stable")
    starts = np.flatnonzero(np.diff(hashes[order], prepend=~hashes[order][:1]))
    first = np.repeat(order[starts], np.diff(starts, append=len(order)))
    partner = np.empty(len(hashes), dtype=np.int64)
    partner[order] = first
    partner[partner == np.arange(len(hashes))] = -1
    return partner
