"""From the records of a source to tokenized rows, each with its location or its error."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from peft_lightning.data.files.sources import Source
from peft_lightning.data.options import RowOptions
from peft_lightning.data.records import LocatedRecord, Record, RowError
from peft_lightning.data.rows.conversations import Row
from peft_lightning.data.rows.format_detection import ResolvedFormat, resolve_format
from peft_lightning.data.rows.row_parser import RowParser
from peft_lightning.data.tokens.tokenization import RowTokenizer, TokenizedRow
from peft_lightning.messages import UserError

ROWS_PER_CHUNK = 512


@dataclass(frozen=True)
class RowReader:
    """The records of a source, and what turns each of them into a row.

    Args:
        format: The format.
        parser: Turns a record into a row.
        records: All records, once.
        estimated_num_rows: Their number, estimated from lines; None where counting would be slow.
    """

    format: ResolvedFormat
    parser: RowParser
    records: Iterator[LocatedRecord]
    estimated_num_rows: int | None


@dataclass(frozen=True)
class RowResult:
    """What became of one record.

    Args:
        location: Its place, "file:line".
        row: The row; None if the record is malformed.
        tokens: The sequences of tokens that the row became, or the error of one that is left out.
    """

    location: str
    row: Row | None
    tokens: list[TokenizedRow] | RowError


def open_rows(source: Source, options: RowOptions) -> RowReader:
    """Detect the format of a source.

    Args:
        source: The records.
        options: How they are read.

    Raises:
        UserError: If the format is not known, or there is no record.
    """
    first = itertools.islice(source.records(), options.max_rows)
    resolved, records = resolve_format(first, options, source.name)
    number = source.estimated_num_rows()
    if options.max_rows is not None:
        number = min(options.max_rows, number or options.max_rows)
    return RowReader(resolved, RowParser(resolved, options), records, number)


def row_results(
    records: Iterable[LocatedRecord], parser: RowParser, row_tokenizer: RowTokenizer
) -> list[RowResult]:
    """Parse and tokenize ``records``; one that cannot be used gives its error.

    Args:
        records: Records with their locations.
        parser: Turns a record into a row.
        row_tokenizer: Tokenizes the rows.

    Raises:
        UserError: If no record can be used in this way, such as conversations without a template.
    """
    parsed = [(_parse(record, parser, location), location) for record, location in records]
    rows = [row for row, _ in parsed if not isinstance(row, RowError)]
    tokens = iter(row_tokenizer.tokenize(rows))
    return [
        RowResult(location, None, row)
        if isinstance(row, RowError)
        else RowResult(location, row, next(tokens))
        for row, location in parsed
    ]


def _parse(record: Record | RowError, parser: RowParser, location: str) -> Row | RowError:
    try:
        return record if isinstance(record, RowError) else parser.row(record)
    except RowError as error:
        return error
    except ValueError as error:
        raise UserError(f"{location}: {error}") from error
