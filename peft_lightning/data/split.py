"""The rows of an option: of one source or several, a source that is given twice read twice."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset

from peft_lightning.data.batching import RowIndices, WeightedSource
from peft_lightning.data.files.sources import Source, as_list, find_source
from peft_lightning.data.per_source import source_names
from peft_lightning.data.tokenized_dataset import TokenizedDataset
from peft_lightning.files import sha256_of_json
from peft_lightning.messages import UserError

Tokenize = Callable[[Source], TokenizedDataset]


@dataclass(frozen=True)
class Split:
    """The rows of one or several sources that are used for one purpose.

    Args:
        dataset: All rows of the sources, concatenated; those of a source that is given twice once.
        lengths: (all rows,) Number of tokens of each row.
        num_loss_tokens: (all rows,) Number of tokens in the loss of each row.
        records: (all rows,) Number of the record that each row is made of, over all sources.
        sources: The rows that belong to this split, by source.
        fingerprint: What determines the tokens, by source.
        names: The sources as the user wrote them.
        labels: The names of the sources in metrics; empty for one path without a name.
    """

    dataset: ConcatDataset[dict[str, NDArray[np.int64]]]
    lengths: NDArray[np.int64]
    num_loss_tokens: NDArray[np.int64]
    records: NDArray[np.int64]
    sources: list[WeightedSource]
    fingerprint: list[dict[str, Any]]
    names: list[str]
    labels: list[str]

    @property
    def rows(self) -> RowIndices:
        """The indices of the rows of this split, each once, in increasing order."""
        return np.unique(np.concatenate([source.rows for source in self.sources]))

    def source_of(self) -> Callable[[int], str]:
        """Return a function from a row to the name of its source, the first that has the row."""
        labels = self.labels or source_names(self.names)
        owner = np.zeros(len(self.lengths), dtype=np.int64)
        for i, source in reversed(list(enumerate(self.sources))):
            owner[source.rows] = i
        return lambda row: labels[owner[row]]

    @property
    def parts(self) -> list[TokenizedDataset]:
        """The tokens of the sources, those of equal content once."""
        parts: list[Any] = self.dataset.datasets
        return parts

    @property
    def folders(self) -> set[Path]:
        """The folders of the tokens of its sources; sources of equal content share one."""
        return {part.folder for part in self.parts}

    @property
    def sizes(self) -> dict[str, int]:
        """The numbers of rows of the files, of all tokens, of those in the loss and in one row."""
        return {
            "rows": len(np.unique(self.records[self.rows])),
            "tokens": int(self.lengths[self.rows].sum()),
            "loss_tokens": int(self.num_loss_tokens[self.rows].sum()),
            "longest_row": int(self.lengths[self.rows].max(initial=0)),
        }


@dataclass(frozen=True)
class GivenSources:
    """The sources of an option.

    Args:
        option: The option, such as ``data.train``.
        names: The sources as the user wrote them; one that is given twice occurs twice.
        labels: Their names in metrics; empty for one path without a name.
        sources: Each of them once, by name.
    """

    option: str
    names: list[str]
    labels: list[str]
    sources: dict[str, Source]


def find_sources(paths: Any, option: str, encoding: str | None = None) -> GivenSources:
    """Return the sources of an option.

    Args:
        paths: One path, several, a mapping of paths to numbers for ``data.train``, or of names to
            paths for the others.
        option: The option that gives the paths.
        encoding: Encoding of text files; None for UTF-8.

    Raises:
        UserError: If a source does not exist, there is none, or ``paths`` is something else.
    """
    maps = "paths to numbers, {a.jsonl: 0.7, b.jsonl: 0.3}"
    if option != "data.train":
        maps = "names to paths, {chat: chat.jsonl}"
    if not paths:
        raise UserError(f"{option}: an empty list of data files")
    if isinstance(paths, str) and paths.startswith("{"):  # of the command line, not as typed
        raise UserError(f"{option} maps {maps}, got {paths}")
    names = as_list(paths)
    shown = ["rows" if isinstance(name, Source) else name for name in names]
    labels = source_names(shown) if len(names) > 1 else []
    if isinstance(paths, Mapping) and option != "data.train":
        names, labels = list(paths.values()), [str(name) for name in names]
    if not all(isinstance(name, str | Source) for name in names):
        raise UserError(f"{option} maps {maps}, or is a path or a list of paths, got {paths}")
    purpose = option.removeprefix("data.")
    sources = {str(name): find_source(name, purpose, encoding) for name in names}
    return GivenSources(option, list(map(str, names)), labels, sources)


def open_split(given: GivenSources, tokenize: Tokenize, log: Callable[[str], None]) -> Split:
    """Tokenize sources, or load their tokens, and concatenate them.

    Args:
        given: The sources.
        tokenize: Loads or makes the tokens of a source.
        log: Receives which files of a folder are read, and which sources are given several times.
    """
    for source in given.sources.values():
        if summary := source.summary():
            log(summary)
    parts = {name: tokenize(source) for name, source in given.sources.items()}
    distinct = {part.folder: part for part in parts.values()}
    ends = np.cumsum([len(part) for part in distinct.values()])
    records = [part.records for part in distinct.values()]
    starts = np.cumsum([0, *(int(found[-1]) + 1 if len(found) else 0 for found in records)])
    rows = {
        folder: np.arange(end - len(part), end)
        for (folder, part), end in zip(distinct.items(), ends, strict=True)
    }
    for folder in distinct:
        same = [name for name in given.names if parts[name].folder == folder]
        if len(same) > 1:
            alike = f"{same[0]} is" if len(set(same)) == 1 else f"{', '.join(same)} are one source"
            log(f"{given.option}: {alike} given {len(same)} times, and read as often")
    numbers = np.concatenate([n + first for n, first in zip(records, starts, strict=False)])
    return Split(
        ConcatDataset(distinct.values()),
        np.concatenate([part.lengths for part in distinct.values()]),
        np.concatenate([part.num_loss_tokens for part in distinct.values()]),
        numbers,
        [WeightedSource(rows[parts[name].folder], records=numbers) for name in given.names],
        [
            {**parts[name].meta["fingerprint"], "tokens": parts[name].tokens_hash}
            for name in given.names
        ],
        given.names,
        given.labels,
    )


def data_state(splits: Mapping[str, Split], val: Any, val_fraction: float | None) -> dict[str, Any]:
    """Return what determines the tokens of a run, to compare with a checkpoint's.

    Args:
        splits: The open splits.
        val: The validation rows, if they are given.
        val_fraction: The fraction of the training rows that is validated on otherwise.
    """
    fingerprint: dict[str, Any] = {name: split.fingerprint for name, split in splits.items()}
    fraction = "auto" if val_fraction is None else val_fraction
    fingerprint["val_fraction"] = None if val else fraction
    train = splits.get("train")
    return {
        "fingerprint": fingerprint,
        "data_hash": sha256_of_json(fingerprint),
        "files": ", ".join(train.names) if train else "",
    }
