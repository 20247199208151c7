"""Sources of records: a data file, a folder of data files, or a data set on the hub."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_lightning.data.readers import READERS, LocatedRecord, estimated_num_rows
from peft_lightning.files import sha256_of_file
from peft_lightning.messages import UserError, did_you_mean, join_or

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?(\[(?P<split>[^\]]+)\])?")


@dataclass(frozen=True)
class Source:
    """Data files or a hub data set, read record by record.

    Args:
        name: The path or hub id as the user wrote it, for messages.
        files: The local files in reading order; empty for a hub data set.
    """

    name: str
    files: tuple[Path, ...] = ()

    def records(self) -> Iterator[LocatedRecord]:
        """Yield every record, or the error of a malformed one, with its location ("file:line").

        Raises:
            UserError: If there is no record, or a file cannot be read at all.
        """
        rows = 0
        for record, location in self._rows():
            rows += 1
            yield record, location
        if not rows:
            raise UserError(f"{self.name}: no rows; {', '.join(map(str, self.files))} empty")

    def fingerprint(self) -> list[str]:
        """Return the SHA-256 of each file, or the fingerprint of the hub data set."""
        if not self.files:
            return [_hub_dataset(self.name)._fingerprint]
        return [sha256_of_file(file) for file in self.files]

    def estimated_num_rows(self) -> int | None:
        """Return the number of rows, estimated from lines; None where counting would be slow."""
        if not self.files:
            return len(_hub_dataset(self.name))
        counts = [estimated_num_rows(file) for file in self.files]
        return None if None in counts else sum(n for n in counts if n is not None)

    def _rows(self) -> Iterator[LocatedRecord]:
        if not self.files:
            for number, row in enumerate(_hub_dataset(self.name), start=1):
                yield row, f"{self.name}: row {number}"
        for file in self.files:
            yield from READERS[file.suffix](file)


def find_source(path: str) -> Source:
    """Return the local file or folder ``path``, or the hub data set of that name.

    A folder stands for all data files directly in it, in the order of their names and whatever
    their names are: train.jsonl and validation.jsonl in one folder are read as one source.

    Args:
        path: A file, a folder, or "owner/name", "owner/name:config", "owner/name[split]" on the
            hub; the default split is "train".

    Raises:
        UserError: If none of them exists; suggests similar file names.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        files = sorted(f for f in local.iterdir() if f.suffix in SUFFIXES and f.name[0] != ".")
        if not files:
            raise UserError(f"{path}: no data file in this folder; they end in {join_or(SUFFIXES)}")
        return Source(path, tuple(files))
    if local.is_file():
        if local.suffix not in SUFFIXES:
            raise UserError(
                f"{path}: unknown kind of file {local.suffix!r}; use {join_or(SUFFIXES)}"
            )
        return Source(path, (local,))
    missing = f"{path}: no such file or folder{_nearest(local)}"
    if not HUB_NAME.fullmatch(path) or local.suffix in SUFFIXES:
        raise UserError(missing)
    try:
        _hub_dataset(path)
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{missing}; nor could a data set of that name be loaded from the hub"
            f" ({type(error).__name__}: {first_line})"
        ) from error
    return Source(path)


def as_list(paths: str | list[str]) -> list[str]:
    """Return ``paths``, one or several, as a list."""
    return [paths] if isinstance(paths, str) else paths


def _hub_dataset(path: str) -> Any:
    from datasets import load_dataset  # slow to import and rarely needed

    match = HUB_NAME.fullmatch(path)
    assert match is not None
    return load_dataset(match["name"], match["config"], split=match["split"] or "train")


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _nearest(path: Path) -> str:
    """Return "; did you mean ..." with similar names in the closest parent folder that exists."""
    folder = path.parent
    while not folder.is_dir():
        path, folder = folder, folder.parent
    names = [p.name for p in folder.iterdir()]
    return did_you_mean(path.name, names, most=3, show=lambda name: str(folder / name))
