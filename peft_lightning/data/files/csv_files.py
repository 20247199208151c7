"""CSV and TSV files: rows below a header line, which tells what separates the columns."""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from peft_lightning.data.files.data_files import DataFile
from peft_lightning.data.files.text_files import SAMPLE, TextFile
from peft_lightning.data.records import MAX_ROW_SIZE, LocatedRecord, Record, RowError
from peft_lightning.messages import UserError

SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons"}
_OWN = {"csv": ",", "tsv": "\t"}
_EXCEL_HINT = re.compile(r'"?sep=(.)"?\r?\n', re.IGNORECASE)  # Excel's first line, no header
_SURROGATE = re.compile("[\ud800-\udfff]")


class Dialect(NamedTuple):
    """How a table is written.

    Args:
        separator: The character between two columns.
        is_quoted: Whether a field may be in quotes; if not, quotes are text.
        num_skipped: Number of lines before the header line.
    """

    separator: str
    is_quoted: bool = True
    num_skipped: int = 0


def read_csv(file: DataFile, encoding: str | None) -> Iterator[LocatedRecord]:
    """Read rows below a header line; the location of a row is its last line."""
    dialect = dialect_of(file, encoding)
    with TextFile(file, encoding) as text_file:
        characters = text_file.characters()
        for _ in range(dialect.num_skipped):
            characters.readline()
        rows = _rows(characters, dialect)
        header = _header(rows, text_file)
        while True:
            row: list[str] | None = []
            record: Record | RowError | None = None
            try:
                row = next(rows, None)
            except csv.Error as error:
                doubled = "; a quote inside quotes is doubled" if '"' in str(error) else ""
                record = RowError("invalid CSV", f"{error}{doubled}")
            if row is None:
                return
            if row:  # not a blank line
                record = _record(header, row, text_file)
            if record is not None:
                yield record, f"{file.path}:{rows.line_num + dialect.num_skipped}"


def dialect_of(file: DataFile, encoding: str | None) -> Dialect:
    """Return how a table is written, by its header line and, if it is separated by tabs, its rows.

    Its separator is the usual one of the kind unless the header has another one and not that. Most
    programs write no quotes around fields between tabs: they are some only if all rows agree.
    """
    with TextFile(file, encoding) as text_file:
        head = text_file.head()
        hint = _EXCEL_HINT.match(head)
        if hint:
            return Dialect(hint[1], num_skipped=1)
        line = head.lstrip("\r\n").partition("\n")[0].rstrip("\r")
        columns = {separator: _num_columns(line, separator) for separator in SEPARATORS}
        several = [separator for separator, number in columns.items() if number > 1]
        dialect = Dialect(several[0] if len(several) == 1 else _OWN[file.kind])
        if dialect.separator != "\t":
            return dialect
        sample = text_file.characters().read(SAMPLE)
    return dialect._replace(is_quoted=_are_quotes_closed(sample, dialect))


def _rows(lines: Iterable[str], dialect: Dialect) -> Any:
    csv.field_size_limit(MAX_ROW_SIZE)  # of the process; Python's own is 128 KiB
    if dialect.is_quoted:
        return csv.reader(lines, strict=True, delimiter=dialect.separator)
    return csv.reader(lines, strict=True, delimiter=dialect.separator, quoting=csv.QUOTE_NONE)


def _are_quotes_closed(sample: str, dialect: Dialect) -> bool:
    lines = list(io.StringIO(sample, newline="")) if '"' in sample else []
    rows = _rows(lines, dialect)
    try:
        for _ in rows:
            pass
    except csv.Error:
        return len(sample) == SAMPLE and rows.line_num == len(lines)  # cut in a field
    return True


def _num_columns(line: str, separator: str) -> int:
    try:
        return len(next(csv.reader([line], strict=True, delimiter=separator), []))
    except csv.Error:
        return 0


def _header(rows: Iterable[list[str]], text_file: TextFile) -> list[str]:
    path = text_file.file.path
    try:
        header = [name.strip() for name in next((row for row in rows if row), [])]
    except csv.Error as error:
        raise UserError(f"{path}:1: no header line: {error}") from None
    if any(map(_SURROGATE.search, header)):
        raise UserError(f"{path}:1: {text_file.row_error('in the header line')}")
    if len(set(header)) < len(header):
        raise UserError(f"{path}:1: duplicate column name: {header}")
    return header


def _record(header: list[str], row: list[str], text_file: TextFile) -> Record | RowError:
    text = "".join(row)
    if _SURROGATE.search(text):
        return text_file.row_error("")
    if len(row) != len(header):
        return RowError("wrong number of columns", f"{len(row)}, the header has {len(header)}")
    if "\0" in text:
        return RowError("NUL bytes")
    return dict(zip(header, row, strict=True))
