"""Readers of data files by kind: from a file to records and their locations."""

from collections.abc import Callable, Iterator

from peft_lightning.data.files.arrow_files import num_rows, read_arrow, read_parquet
from peft_lightning.data.files.compressed import DAMAGE, open_decompressed
from peft_lightning.data.files.csv_files import read_csv
from peft_lightning.data.files.data_files import DataFile
from peft_lightning.data.files.json_files import read_json, read_jsonl
from peft_lightning.data.records import LocatedRecord
from peft_lightning.messages import UserError

READERS: dict[str, Callable[[DataFile, str | None], Iterator[LocatedRecord]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "tsv": read_csv,
    "parquet": read_parquet,
    "arrow": read_arrow,
}


def read_file(file: DataFile, encoding: str | None) -> Iterator[LocatedRecord]:
    """Read a data file row by row.

    Args:
        file: The file.
        encoding: Encoding of text files; None for UTF-8.

    Yields:
        Each record, or the error of a malformed one, with its location ("file:line").

    Raises:
        UserError: If the file cannot be read, or not to its end.
    """
    location = ""
    try:
        for record, location in READERS[file.kind](file, encoding):
            yield record, location
    except UserError:
        raise
    except (*DAMAGE, UnicodeError) as error:
        raise UserError(_damaged(file, location, error)) from error


def estimated_num_rows(file: DataFile) -> int | None:
    """Return the number of rows of ``file``, by its lines; None where counting would be slow."""
    if file.kind in ("parquet", "arrow"):
        return num_rows(file)
    if file.kind == "json" or file.compression:
        return None
    with open_decompressed(file.path, None) as content:
        return sum(block.count(b"\n") for block in iter(lambda: content.read(2**20), b""))


def _damaged(file: DataFile, location: str, error: Exception) -> str:
    reached = location.removeprefix(str(file.path)).strip(": ")
    reached = f"line {reached}" if reached.isdigit() else reached
    what = str(error) or type(error).__name__
    if isinstance(error, PermissionError | FileNotFoundError | IsADirectoryError):
        return f"{file.path}: cannot be read: {error.strerror}"
    if reached:
        return f"{file.path}: damaged after {reached} ({what}); copy it or download it again"
    if file.compression:
        name = file.path.stem
        return (
            f"{file.path}: no {file.compression} file, or a damaged one ({what}); copy it again, or"
            f" name it {name} if it is not compressed"
        )
    return f"{file.path}: damaged ({what}); copy it or download it again"
