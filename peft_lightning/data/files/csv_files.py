"""CSV and TSV files: rows below a header line, which tells what separates the columns."""

import csv
import re
from collections.abc import Iterator

from peft_lightning.data.files.data_files import DataFile
from peft_lightning.data.files.text_files import TextFile
from peft_lightning.data.records import MAX_ROW_SIZE, LocatedRecord, Record, RowError
from peft_lightning.messages import UserError

SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons"}
_OWN = {"csv": ",", "tsv": "\t"}
_EXCEL_HINT = re.compile(r'"?sep=(.)"?\r?\n', re.IGNORECASE)  # Excel's first line, no header
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_csv(file: DataFile, encoding: str | None) -> Iterator[LocatedRecord]:
    """Read rows below a header line; the location of a row is its last line."""
    csv.field_size_limit(MAX_ROW_SIZE)  # of the process; Python's own is 128 KiB
    with TextFile(file, encoding) as text_file:
        separator, skipped = _separator(text_file, file.kind)
        characters = text_file.characters()
        for _ in range(skipped):
            characters.readline()
        rows = csv.reader(characters, strict=True, delimiter=separator)
        header = _header(rows, text_file)
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                yield RowError("invalid CSV", str(error)), f"{file.path}:{rows.line_num + skipped}"
                continue
            if row is None:
                return
            if row:  # not a blank line
                record = _record(header, row, text_file)
                yield record, f"{file.path}:{rows.line_num + skipped}"


def separator_of(file: DataFile, encoding: str | None) -> str:
    """Return what separates the columns of a file, by its header line.

    Returns:
        The usual separator of the kind unless the header has another one and not that.
    """
    with TextFile(file, encoding) as text_file:
        return _separator(text_file, file.kind)[0]


def _separator(text_file: TextFile, kind: str) -> tuple[str, int]:
    """Return the separator and the number of lines before the header."""
    head = text_file.head()
    hint = _EXCEL_HINT.match(head)
    if hint:
        return hint[1], 1
    line = head.lstrip("\r\n").partition("\n")[0].rstrip("\r")
    columns = {separator: _num_columns(line, separator) for separator in SEPARATORS}
    several = [separator for separator, number in columns.items() if number > 1]
    return several[0] if len(several) == 1 else _OWN[kind], 0


def _num_columns(line: str, separator: str) -> int:
    try:
        return len(next(csv.reader([line], strict=True, delimiter=separator), []))
    except csv.Error:
        return 0


def _header(rows: "Iterator[list[str]]", text_file: TextFile) -> list[str]:
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
