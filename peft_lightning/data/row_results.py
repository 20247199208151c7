"""From the records of a source to tokenized rows, each with its location or its error."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from peft_lightning.data.conversations import Row
from peft_lightning.data.format_detection import resolve_format
from peft_lightning.data.formats import find_format
from peft_lightning.data.options import RowOptions
from peft_lightning.data.records import LocatedRecord, Record, RowError
from peft_lightning.data.sources import Source
from peft_lightning.data.tokenization import RowTokenizer, TokenizedRow
from peft_lightning.messages import UserError

ROWS_PER_CHUNK = 512


@dataclass(frozen=True)
class RowReader:
    """The records of a source, and what turns each of them into a row.

    Args:
        format_name: The name of the format.
        columns: The columns of the first well-formed record.
        to_row: Turns a record into a row.
        records: All records, once.
    """

    format_name: str
    columns: Sequence[str]
    to_row: Callable[[Record], Row]
    records: Iterator[LocatedRecord]


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
    name, columns, records = resolve_format(source.records(), options.format, source.name)
    return RowReader(name, columns, find_format(name), records)


def row_results(
    records: Iterable[LocatedRecord], to_row: Callable[[Record], Row], row_tokenizer: RowTokenizer
) -> list[RowResult]:
    """Parse and tokenize ``records``; one that cannot be used gives its error.

    Args:
        records: Records with their locations.
        to_row: Turns a record into a row.
        row_tokenizer: Tokenizes the rows.

    Raises:
        UserError: If no record can be used in this way, such as conversations without a template.
    """
    parsed = [(_parse(record, to_row, location), location) for record, location in records]
    rows = [row for row, _ in parsed if not isinstance(row, RowError)]
    tokens = iter(row_tokenizer.tokenize(rows))
    return [
        RowResult(location, None, row)
        if isinstance(row, RowError)
        else RowResult(location, row, next(tokens))
        for row, location in parsed
    ]


def _parse(
    record: Record | RowError, to_row: Callable[[Record], Row], location: str
) -> Row | RowError:
    try:
        return record if isinstance(record, RowError) else to_row(record)
    except RowError as error:
        return error
    except ValueError as error:
        raise UserError(f"{location}: {error}") from error
