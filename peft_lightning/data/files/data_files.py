"""Data files by their names: what kind of rows a file holds, and how it is compressed."""

from dataclasses import dataclass
from pathlib import Path

from peft_lightning.data.files.compressed import COMPRESSIONS
from peft_lightning.messages import UserError, join_or

KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
TEXT_KINDS = ("jsonl", "json", "csv", "tsv")
SHOWN = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
RECOGNISED = f"{join_or(SHOWN)}, the first four also with .gz or .zst behind"
_INSTEAD = {  # what to do with files that are not read
    (".zip", ".tar", ".tgz", ".tar.gz", ".tar.zst", ".rar", ".7z"): "unpack it and give the folder",
    (".xlsx", ".xls", ".ods"): "save the sheet as CSV (UTF-8)",
    (".txt", ".md", ".text"): 'write JSONL instead, a line {"text": "..."} for each text',
    (".pkl", ".pickle", ".pt", ".pth", ".npy", ".bin"): "write its rows as JSONL or Parquet",
    (".db", ".sqlite", ".sqlite3", ".xml", ".yaml", ".yml"): "write its rows as JSONL or Parquet",
}


@dataclass(frozen=True)
class DataFile:
    """A file of rows.

    Args:
        path: The file.
        kind: A value of ``KINDS``.
        compression: A value of ``COMPRESSIONS``; None for the plain file.
        keys: The keys of a JSON object whose arrays are the rows that are meant; empty if the
            object has no arrays named like splits, and for other kinds.
        columns: The columns that are read, of Arrow files; None for all.
    """

    path: Path
    kind: str
    compression: str | None = None
    keys: tuple[str, ...] = ()
    columns: tuple[str, ...] | None = None


def kind_of(name: str) -> tuple[str, str | None] | None:
    """Return the kind and the compression of a file of this name; None if it is no data file."""
    name = name.lower()
    compression = None
    for suffix, value in COMPRESSIONS.items():
        if name.endswith(suffix):
            name, compression = name.removesuffix(suffix), value
    kind = KINDS.get(Path(name).suffix)
    if kind is None or (compression and kind not in TEXT_KINDS):
        return None
    return kind, compression


def data_file(path: Path) -> DataFile:
    """Return the data file at ``path``.

    Raises:
        UserError: If its name is not that of a data file; says what to do with it.
    """
    kind = kind_of(path.name)
    if kind is not None:
        return DataFile(path, *kind)
    name = path.name.lower()
    if any(name.endswith(suffix) for suffix in COMPRESSIONS):
        inner = Path(name).with_suffix("").suffix
        if KINDS.get(inner):
            raise UserError(
                f"{path}: {inner} files are compressed inside, not as a whole; decompress it"
            )
    for suffixes, remedy in _INSTEAD.items():
        if name.endswith(suffixes):
            suffix = max((s for s in suffixes if name.endswith(s)), key=len)
            raise UserError(f"{path}: {suffix} files are not read; {remedy}")
    raise UserError(f"{path}: unknown kind of file {path.suffix!r}; use {RECOGNISED}")
