"""Rows of Python objects as a source: a list of dicts, a data set of `datasets` or torch, a stream.

They are read like those of a file. What tells them from others is their content: a fingerprint of
`datasets` is made of how a data set came about, and is random where that cannot be told.
"""

import functools
import itertools
import mmap
import os
import pickle
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from peft_lightning.data.files.hub_datasets import hub_rows
from peft_lightning.data.files.plain_values import RowsHash, plain_row
from peft_lightning.data.files.sources import Source
from peft_lightning.data.records import LocatedRecord, RowError
from peft_lightning.messages import UserError
from peft_lightning.process.progress import Progress


@dataclass(frozen=True, eq=False)
class RowsInHand(Source):
    """Rows of Python objects, read record by record.

    A list and a ``datasets.Dataset`` are read where they are. Everything else may give other rows
    the second time, or none: it is read once, its first ``max_rows``, into a temporary file.

    Args:
        rows: The rows, or what yields them.
        max_rows: Maximum number of rows that are read; None for all.
    """

    rows: Any = field(default=None, repr=False)
    max_rows: int | None = None

    def __str__(self) -> str:
        return self.name

    def records(self) -> Iterator[LocatedRecord]:
        """Yield every row, or the error of a malformed one, with its location."""
        is_empty = True
        for number, record in enumerate(self._plain(), start=1):
            is_empty = False
            yield record, f"{self.name}: row {number}"
        if is_empty:
            raise UserError(f"{self.name}: no rows; the {type(self.rows).__name__} is empty")

    def fingerprint(self) -> list[str]:
        """Return a hash of the content of the rows."""
        found = RowsHash(self.name)
        for record in self._plain():
            found.add(str(record) if isinstance(record, RowError) else record)
        return [f"rows:{found.hexdigest()}"]

    def estimated_num_rows(self) -> int | None:
        """Return the number of rows."""
        return len(self.rows) if self._is_stable else self._kept[1]

    def summary(self) -> str:
        """Return how much of a stream is read, in one line; empty for what has a length."""
        if hasattr(type(self.rows), "__len__"):
            return ""
        count = self._kept[1]
        if count == self.max_rows:
            return f"{self.name}: the first {count:,} rows of the stream are read"
        return f"{self.name}: the whole stream is read, {count:,} rows; data.max_rows reads fewer"

    @property
    def _is_stable(self) -> bool:
        return isinstance(self.rows, list | tuple) or is_of_datasets(self.rows, "Dataset")

    def _plain(self) -> Iterator[Any]:
        """Yield plain rows and the errors of malformed ones."""
        if not self._is_stable:
            yield from _pickled(self._kept[0])
        elif isinstance(self.rows, list | tuple) or self.rows.format["type"] == "custom":
            yield from map(_plain_or_error, self.rows)
        else:
            columns = self.rows.select_columns(self.rows.format["columns"])
            yield from (record for record, _ in hub_rows(columns, self.name))

    @functools.cached_property
    def _kept(self) -> tuple[Any, int]:
        """The file of the rows that a stream yielded, and their number."""
        file, count = tempfile.TemporaryFile(), 0  # noqa: SIM115  (of the source's life)
        with Progress(f"reading {self.name}", self.max_rows, "rows") as progress:
            for row in itertools.islice(_once(self.rows), self.max_rows):
                pickle.dump(_plain_or_error(row), file)
                count += 1
                progress.update(count)
        file.flush()
        return file, count


def is_of_datasets(value: Any, *names: str) -> bool:
    """Whether a value is of a class of `datasets`, which is imported if it is."""
    datasets = sys.modules.get("datasets")
    return any(isinstance(value, getattr(datasets, name, ())) for name in names)


def _once(rows: Any) -> Iterator[Any]:
    """Yield the rows of a stream or of a data set of torch."""
    kind = type(rows)
    if hasattr(kind, "__getitem__") and hasattr(kind, "__len__"):
        return (rows[i] for i in range(len(rows)))
    return iter(rows)


def _plain_or_error(row: Any) -> Any:
    try:
        return plain_row(row)
    except RowError as error:
        return error
    except RecursionError:
        return RowError("nested too deeply", "write it with fewer lists in lists")


def _pickled(file: Any) -> Iterator[Any]:
    """Yield what was written into a file, which several may read at once."""
    if not os.fstat(file.fileno()).st_size:
        return
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        while content.tell() < content.size():
            yield pickle.load(content)
