"""Readers of data files: from JSONL, JSON, CSV or Parquet to records and their locations."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peft_lightning.data.records import MAX_ROW_SIZE, LocatedRecord, Record, RowError
from peft_lightning.messages import UserError

PARQUET_ROWS = 1024  # rows decoded at a time


def read_jsonl(path: Path) -> Iterator[LocatedRecord]:
    """Read one object per line; blank lines are skipped."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
            if line.strip():
                yield _parse_line(line), f"{path}:{number}"


def _parse_line(line: bytes) -> Record | RowError:
    if len(line) > MAX_ROW_SIZE:
        detail = f"{len(line):,} bytes; a row has at most {MAX_ROW_SIZE:,}"
        return RowError("a line that is too long", detail)
    if b"\0" in line:
        return RowError("NUL bytes", f"the first is byte {line.index(0) + 1} of the line")
    try:
        record = json.loads(line.decode().rstrip())
    except UnicodeDecodeError as error:
        return RowError("invalid UTF-8", f"byte {error.start + 1} of the line")
    except json.JSONDecodeError as error:
        return RowError("invalid JSON", f"{error.msg} at column {error.colno}")
    except ValueError as error:  # an integer with thousands of digits
        return RowError("invalid JSON", str(error))
    except RecursionError:
        return RowError("invalid JSON", "nested too deeply")
    return _require_object(record)


def _require_object(record: Any) -> Record | RowError:
    if isinstance(record, dict):
        return record
    return RowError(
        "not an object", f"got {type(record).__name__}, a row is {{column: value, ...}}"
    )


def read_json(path: Path) -> Iterator[LocatedRecord]:
    """Read an array of objects, an object with exactly one array, or JSONL in a .json file."""
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig") or "[]")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: invalid UTF-8 at byte {error.start + 1}") from error
    except RecursionError:
        raise UserError(f"{path}: invalid JSON, nested too deeply") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and _looks_like_jsonl(path):
            yield from read_jsonl(path)
            return
        raise UserError(
            f"{path}:{error.lineno}: invalid JSON, {error.msg} at column {error.colno}"
        ) from error
    except ValueError as error:  # an integer with thousands of digits
        raise UserError(f"{path}: invalid JSON, {error}") from None
    if isinstance(content, dict):
        arrays = [key for key, value in content.items() if isinstance(value, list)]
        if len(arrays) != 1 or not all(isinstance(r, dict) for r in content[arrays[0]]):
            raise UserError(
                f"{path}: an object with the keys {list(content)}; expected an array of rows, or an"
                " object with exactly one array of rows"
            )
        content = content[arrays[0]]
    if not isinstance(content, list):
        raise UserError(f"{path}: expected an array of rows, got {type(content).__name__}")
    for number, record in enumerate(content, start=1):
        yield _require_object(record), f"{path}: item {number}"


def _looks_like_jsonl(path: Path) -> bool:
    with path.open("rb") as file:
        return isinstance(_parse_line(file.readline().removeprefix(b"\xef\xbb\xbf")), dict)


def read_csv(path: Path) -> Iterator[LocatedRecord]:
    """Read rows below a header line; the location of a row is its last line."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file, strict=True)
        try:
            header = next(rows, [])
        except csv.Error as error:
            raise UserError(f"{path}:1: no header line: {error}") from None
        if len(set(header)) < len(header):
            raise UserError(f"{path}:1: duplicate column name: {header}")
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                yield RowError("invalid CSV", str(error)), f"{path}:{rows.line_num}"
                continue
            if row is None:
                return
            if row:  # not a blank line
                yield _csv_record(header, row), f"{path}:{rows.line_num}"


def _csv_record(header: list[str], row: list[str]) -> Record | RowError:
    if len(row) != len(header):
        return RowError("wrong number of columns", f"{len(row)}, the header has {len(header)}")
    text = "".join(row)
    if "\0" in text:
        return RowError("NUL bytes")
    if any("\ud800" <= character <= "\udfff" for character in text):
        return RowError("invalid UTF-8")
    return dict(zip(header, row, strict=True))


def read_parquet(path: Path) -> Iterator[LocatedRecord]:
    """Read the rows of a Parquet file in batches."""
    import pyarrow.parquet  # slow to import

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(PARQUET_ROWS):
            for record in batch.to_pylist():
                number += 1
                yield record, f"{path}: row {number}"
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        problem = f"damaged after row {number}" if number else "not a Parquet file"
        raise UserError(f"{path}: {problem}, {error}") from error


READERS: dict[str, Callable[[Path], Iterator[LocatedRecord]]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
}


def estimated_num_rows(file: Path) -> int | None:
    """Return the number of rows of ``file``, by its lines; None where counting would be slow."""
    if file.suffix in (".jsonl", ".csv"):
        with file.open("rb") as content:
            return sum(block.count(b"\n") for block in iter(lambda: content.read(2**20), b""))
    if file.suffix != ".parquet":
        return None
    import pyarrow.parquet

    try:
        return int(pyarrow.parquet.read_metadata(file).num_rows)
    except (pyarrow.ArrowException, OSError):  # read_parquet reports it
        return None
