"""Where records come from: JSONL, JSON, CSV, Parquet, a folder of them, or a hub data set."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_lightning.files import sha256_of_file
from peft_lightning.messages import did_you_mean, join_or

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?(\[(?P<split>[^\]]+)\])?")
PARQUET_ROWS = 1024  # rows decoded at a time
LONGEST_LINE = 16 * 2**20  # bytes of a JSONL row; more is no text to train on, but a broken file

Record = dict[str, Any]


class RowError(ValueError):
    """A row that cannot be used: ``reason`` is what rows are counted by, ``detail`` says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True)
class Source:
    """A place that records are read from.

    Args:
        name: As the user wrote it; messages use it.
        files: The local files in reading order; empty for a hub data set.
    """

    name: str
    files: tuple[Path, ...] = ()

    def records(self) -> Iterator[tuple[Record | RowError, str]]:
        """Yield every row, or what is wrong with it, and where it stands ("file:line").

        Raises:
            ValueError: If there is no row at all, or a file cannot be read as a whole.
        """
        rows = 0
        for record, where in self._rows():
            rows += 1
            yield record, where
        if not rows:
            raise ValueError(f"{self.name}: no rows; {', '.join(map(str, self.files))} empty")

    def fingerprint(self) -> list[str]:
        """Return the sha256 of each file's content (a hub data set: its own fingerprint)."""
        if not self.files:
            return [_hub_dataset(self.name)._fingerprint]
        return [sha256_of_file(file) for file in self.files]

    def about_rows(self) -> int | None:
        """Return the number of rows to expect, by lines; None where that is not known cheaply."""
        if not self.files:
            return len(_hub_dataset(self.name))
        counts = [_about_rows(file) for file in self.files]
        return None if None in counts else sum(n for n in counts if n is not None)

    def _rows(self) -> Iterator[tuple[Record | RowError, str]]:
        if not self.files:
            for number, row in enumerate(_hub_dataset(self.name), start=1):
                yield row, f"{self.name}: row {number}"
        for file in self.files:
            yield from READERS[file.suffix](file)


def find_source(path: str) -> Source:
    """Find what ``path`` names: a local file, a local folder, else a data set on the hub.

    A folder means all data files directly in it, in the order of their names, whatever they are
    called: a folder that holds both train.jsonl and validation.jsonl is read as one.

    Args:
        path: File, folder, or "owner/name", "owner/name:config", "owner/name[split]" on the hub,
            where the split is "train" unless given.

    Raises:
        ValueError: If there is no such thing, with the nearest names there are.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        files = sorted(f for f in local.iterdir() if f.suffix in SUFFIXES and f.name[0] != ".")
        if not files:
            raise ValueError(
                f"{path}: no data file in this folder; they end in {join_or(SUFFIXES)}"
            )
        return Source(path, tuple(files))
    if local.is_file():
        if local.suffix not in SUFFIXES:
            raise ValueError(
                f"{path}: unknown kind of file {local.suffix!r}; use {join_or(SUFFIXES)}"
            )
        return Source(path, (local,))
    missing = f"{path}: no such file or folder{_nearest(local)}"
    if not HUB_NAME.fullmatch(path) or local.suffix in SUFFIXES:
        raise ValueError(missing)
    try:
        _hub_dataset(path)
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{missing}; nor could a data set of that name be loaded from the hub"
            f" ({type(error).__name__}: {first_line})"
        ) from error
    return Source(path)


def _read_jsonl(path: Path) -> Iterator[tuple[Record | RowError, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
            if line.strip():
                yield _parse(line), f"{path}:{number}"


def _parse(line: bytes) -> Record | RowError:
    if len(line) > LONGEST_LINE:
        detail = f"{len(line):,} bytes; a row has at most {LONGEST_LINE:,}"
        return RowError("a line that is too long", detail)
    if b"\0" in line:
        return RowError("NUL bytes", f"the first is byte {line.index(0) + 1} of the line")
    try:
        record = json.loads(line.decode().rstrip())
    except UnicodeDecodeError as error:
        return RowError("invalid UTF-8", f"byte {error.start + 1} of the line")
    except json.JSONDecodeError as error:
        return RowError("invalid JSON", f"{error.msg} at column {error.colno}")
    except ValueError as error:  # a number of thousands of digits
        return RowError("invalid JSON", str(error))
    except RecursionError:
        return RowError("invalid JSON", "nested too deeply")
    return _object(record)


def _object(record: Any) -> Record | RowError:
    if isinstance(record, dict):
        return record
    return RowError(
        "not an object", f"got {type(record).__name__}, a row is {{column: value, ...}}"
    )


def _read_json(path: Path) -> Iterator[tuple[Record | RowError, str]]:
    """Read an array of objects, an object that holds one array, or JSONL under this name."""
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig") or "[]")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: invalid UTF-8 at byte {error.start + 1}") from error
    except RecursionError:
        raise ValueError(f"{path}: invalid JSON, nested too deeply") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and _looks_like_jsonl(path):
            yield from _read_jsonl(path)
            return
        raise ValueError(
            f"{path}:{error.lineno}: invalid JSON, {error.msg} at column {error.colno}"
        ) from error
    except ValueError as error:  # a number of thousands of digits
        raise ValueError(f"{path}: invalid JSON, {error}") from None
    if isinstance(content, dict):
        arrays = [key for key, value in content.items() if isinstance(value, list)]
        if len(arrays) != 1 or not all(isinstance(r, dict) for r in content[arrays[0]]):
            raise ValueError(
                f"{path}: an object with the keys {list(content)}; wanted an array of rows, or an"
                " object with exactly one array of rows"
            )
        content = content[arrays[0]]
    if not isinstance(content, list):
        raise ValueError(f"{path}: wanted an array of rows, got {type(content).__name__}")
    for number, record in enumerate(content, start=1):
        yield _object(record), f"{path}: item {number}"


def _looks_like_jsonl(path: Path) -> bool:
    with path.open("rb") as file:
        return isinstance(_parse(file.readline().removeprefix(b"\xef\xbb\xbf")), dict)


def _read_csv(path: Path) -> Iterator[tuple[Record | RowError, str]]:
    """Read rows under a header line; a field may span lines, ``where`` is a row's last line."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file, strict=True)
        try:
            header = next(rows, [])
        except csv.Error as error:
            raise ValueError(f"{path}:1: no line of columns' names: {error}") from None
        if len(set(header)) < len(header):
            raise ValueError(f"{path}:1: a column's name occurs twice: {header}")
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                yield RowError("invalid CSV", str(error)), f"{path}:{rows.line_num}"
                continue
            if row is None:
                return
            if row:  # a blank line is no row
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


def _read_parquet(path: Path) -> Iterator[tuple[Record | RowError, str]]:
    import pyarrow.parquet  # slow to import, and a dependency of datasets anyway

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(PARQUET_ROWS):
            for record in batch.to_pylist():
                number += 1
                yield record, f"{path}: row {number}"
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        where = f"damaged after row {number}" if number else "not a Parquet file"
        raise ValueError(f"{path}: {where}, {error}") from error


READERS = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _hub_dataset(path: str) -> Any:
    from datasets import load_dataset  # slow to import, and rarely needed

    match = HUB_NAME.fullmatch(path)
    assert match is not None
    return load_dataset(match["name"], match["config"], split=match["split"] or "train")


def _about_rows(file: Path) -> int | None:
    if file.suffix in (".jsonl", ".csv"):
        with file.open("rb") as content:
            return sum(block.count(b"\n") for block in iter(lambda: content.read(2**20), b""))
    if file.suffix != ".parquet":
        return None
    import pyarrow.parquet

    try:
        return int(pyarrow.parquet.read_metadata(file).num_rows)
    except (pyarrow.ArrowException, OSError):  # reading it says what is wrong
        return None


def _nearest(path: Path) -> str:
    """Return "; did you mean ..." with names in the nearest folder above ``path`` that exists."""
    folder = path.parent
    while not folder.is_dir():
        path, folder = folder, folder.parent
    names = [p.name for p in folder.iterdir()]
    return did_you_mean(path.name, names, most=3, show=lambda name: str(folder / name))
