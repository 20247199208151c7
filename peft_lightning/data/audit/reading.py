"""Reads the sources of a run as ``fit`` does, and takes notes instead of writing a token cache.

Most of the time goes into rendering and tokenizing, so large sources are read by several processes.
The main one reads the file, and keeps the order.
"""

import itertools
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peft_lightning.data.audit.locations import Locations
from peft_lightning.data.audit.note_taker import NoteTaker, row_texts
from peft_lightning.data.audit.row_notes import RowNotes, merged_notes
from peft_lightning.data.audit.shingles import TABLE_BITS, common_shingles
from peft_lightning.data.files.sources import Source
from peft_lightning.data.options import RowOptions
from peft_lightning.data.records import LocatedRecord, RowError
from peft_lightning.data.row_results import ROWS_PER_CHUNK, open_rows
from peft_lightning.data.rows.format_detection import ResolvedFormat
from peft_lightning.data.rows.row_parser import RowParser
from peft_lightning.data.tokens.tokenization import RowTokenizer
from peft_lightning.messages import RunError
from peft_lightning.process.progress import Progress
from peft_lightning.process.resources import find_cores, thread_count
from peft_lightning.process.signals import STOP_SIGNALS

FIRST_ROWS = 2048  # of a source, in which boilerplate is looked for
PARALLEL_ROWS = 5000  # of fewer, one process reads all
MOST_PROCESSES = 16
MOST_PARTS = 256  # chunks whose notes are kept apart


class AuditedSource:
    """A source that was read, with notes on its records; stands for a ``TokenizedDataset``.

    Args:
        source: The source.
        format: Its format.
        notes: The notes on all of its records.
        locations: Their locations.
    """

    def __init__(
        self,
        source: Source,
        format: ResolvedFormat,
        notes: RowNotes,
        locations: Locations,
    ) -> None:
        self.source, self.format = source, format
        self.notes, self.locations = notes, locations
        self.folder = Path(source.name)
        self.records = np.repeat(np.arange(len(notes.sequences)), notes.sequences)
        self.tokens_hash = ""  # the tokens are not kept
        self.meta: dict[str, Any] = {"source": source.name, "fingerprint": {}, "findings": []}

    def __len__(self) -> int:
        return len(self.records)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each sequence, (sequences,)."""
        return self.notes.sequence_lengths

    @property
    def num_loss_tokens(self) -> NDArray[np.int64]:
        """Number of tokens in the loss of each sequence, (sequences,)."""
        return self.notes.sequence_loss_tokens


class SourceAuditor:
    """Reads sources.

    Args:
        row_tokenizer: Tokenizes the rows.
        options: How the records are read.
        num_samples: Number of rows to show of each source.
        seed: Seed of the choice of these.
        processes: Processes that tokenize a large source; None for one a core.
    """

    def __init__(
        self,
        row_tokenizer: RowTokenizer,
        options: RowOptions,
        num_samples: int,
        seed: int = 0,
        processes: int | None = None,
    ) -> None:
        self.row_tokenizer, self.options = row_tokenizer, options
        self.num_samples, self.seed = num_samples, seed
        self.processes = processes or _number_of_processes()
        self.common: NDArray[np.bool_] = np.zeros(2**TABLE_BITS, dtype=bool)

    def __call__(self, source: Source) -> AuditedSource:
        """Read ``source``.

        Raises:
            UserError: If it cannot be read at all; a malformed row is an error in the notes.
        """
        reader = open_rows(source, self.options)
        first = list(itertools.islice(reader.records, FIRST_ROWS))
        self.common |= common_shingles(list(_own_texts(first, reader.parser)))
        take_notes = NoteTaker(
            reader.parser, self.row_tokenizer, self.common, self.num_samples, self.seed
        )
        number = reader.estimated_num_rows
        records = itertools.chain(first, reader.records)
        locations = Locations()
        parts: list[RowNotes] = []
        with Progress(f"reading {Path(source.name).name}", number, "rows") as progress:
            large = number is None or number >= PARALLEL_ROWS
            processes = self.processes if large else 1
            for notes in _noted(records, take_notes, locations, processes):
                parts.append(notes)
                progress.update(sum(len(part.sequences) for part in parts))
                if len(parts) > MOST_PARTS:
                    parts = [merged_notes(parts, self.num_samples)]
        notes = merged_notes(parts, self.num_samples)
        return AuditedSource(source, reader.format, notes, locations)


def _own_texts(records: Sequence[LocatedRecord], parser: RowParser) -> Iterator[str]:
    for record, _ in records:
        if isinstance(record, RowError):
            continue
        try:
            yield row_texts(parser.row(record))[1]
        except ValueError:  # counted when it is read
            continue


def _noted(
    records: Iterator[LocatedRecord], take_notes: NoteTaker, locations: Locations, processes: int
) -> Iterator[RowNotes]:
    """Yield the notes on chunks of ``records``, in order."""
    chunks = iter(lambda: list(itertools.islice(records, ROWS_PER_CHUNK)), [])
    if processes == 1:
        for chunk in chunks:
            first = len(locations)
            locations.extend([location for _, location in chunk])
            yield take_notes(first, chunk)
        return
    # forked, so that a user's function and the tokenizer need not be sent to the processes
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads of a forked process would not run
    context = multiprocessing.get_context("fork")
    waiting: deque[Future[RowNotes]] = deque()
    try:
        with ProcessPoolExecutor(processes, context, _begin, (take_notes,)) as pool:
            for chunk in chunks:
                first = len(locations)
                locations.extend([location for _, location in chunk])
                waiting.append(pool.submit(_take_notes, first, chunk))
                if len(waiting) > 2 * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    except BrokenProcessPool:
        raise RunError("a process that read rows was killed, perhaps for lack of memory") from None


def _number_of_processes() -> int:
    cores = find_cores()
    given = cores.given if cores.given and cores.given.isdecimal() else None
    return min(MOST_PROCESSES, int(given or thread_count(cores).count or cores.allowed) or 1)


_note_taker: NoteTaker  # of a process of the pool


def _begin(take_notes: NoteTaker) -> None:
    global _note_taker
    _note_taker = take_notes
    for number in STOP_SIGNALS:  # only the main process says that it was stopped
        signal.signal(number, signal.SIG_DFL)


def _take_notes(first: int, chunk: list[LocatedRecord]) -> RowNotes:
    return _note_taker(first, chunk)
