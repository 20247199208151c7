"""The audit of the data of a run."""

from collections.abc import Callable
from typing import Any

from peft_lightning.data.audit.reading import AuditedSource, SourceAuditor
from peft_lightning.data.audit.report import Report, make_report
from peft_lightning.data.files.sources import Source
from peft_lightning.data.options import RowOptions
from peft_lightning.data.records import DroppedRowError, LongRowError
from peft_lightning.data.tokens.tokenization import RowTokenizer
from peft_lightning.messages import UserError
from peft_lightning.process.progress import Progress

OpenSplits = Callable[[Callable[[Source], Any], Callable[[str], None]], dict[str, Any]]


def audit_rows(
    open_splits: OpenSplits,
    row_tokenizer: RowTokenizer,
    options: RowOptions,
    num_rows: int = 5,
    seed: int = 0,
    processes: int | None = None,
) -> Report:
    """Read the rows of a run as ``fit`` does, and report on them.

    Args:
        open_splits: Opens the splits of ``fit``, given what reads a source and what hears of it.
        row_tokenizer: Tokenizes the rows.
        options: How the records are read.
        num_rows: Number of rows to show: the first, then a random choice.
        seed: Seed of that choice.
        processes: Processes that tokenize a large source; None for one a core.

    Raises:
        UserError: If a source cannot be read at all; malformed rows are findings.
    """
    auditor = SourceAuditor(row_tokenizer, options, num_rows, seed, processes)
    read: dict[Source, AuditedSource] = {}

    lines: list[str] = []

    def tokenize(source: Source) -> AuditedSource:
        if source not in read:
            read[source] = auditor(source)
            if summary := source.summary():
                lines.append(summary)
        return read[source]

    try:
        splits = open_splits(tokenize, lines.append)
    except UserError:
        empty = [source.source.name for source in read.values() if not len(source)]
        if not empty:
            raise
        splits = {}  # the rows that are there are worth a report
        lines.append(f"fit stops, because no row is left of {', '.join(empty)}")
    kinds = {t.kind for source in read.values() for t in source.notes.errors.values() if t.kind}
    if LongRowError in kinds:
        lines.append("fit stops at the first row that is too long: data.truncation is error")
    if options.on_bad_row == "error" and kinds - {LongRowError, DroppedRowError}:
        lines.append("fit stops at the first malformed row: data.on_bad_row is error")
    with Progress("comparing rows"):
        return make_report(list(read.values()), splits, row_tokenizer, num_rows, lines)
