"""Tokenise a source once, into files that every process and later run reads row by row."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers
from filelock import FileLock
from numpy.typing import NDArray
from torch.utils.data import Dataset

from peft_lightning.data.conversations import Row
from peft_lightning.data.formats import find_format, format_identity, resolve_format
from peft_lightning.data.npy import NpyReader, NpyWriter
from peft_lightning.data.sources import Record, RowError, Source
from peft_lightning.data.tokenization import (
    Counts,
    DroppedRowError,
    Encoded,
    Encoder,
    LongRowError,
)
from peft_lightning.data.tokenizer import tokenizer_fingerprint
from peft_lightning.files import atomic_folder, user_cache
from peft_lightning.messages import check_choice
from peft_lightning.process.progress import Progress

VERSION = 1  # raise it when the same rows would become other tokens
ROWS_AT_ONCE = 512
FILES: dict[str, np.dtype[Any]] = {
    "input_ids": np.dtype("<i4"),
    "labelled": np.dtype("u1"),
    "offsets": np.dtype("<i8"),
    "labelled_lengths": np.dtype("<i4"),
}

Announce = Callable[[str], None]


class TokenizedDataset(Dataset[dict[str, NDArray[np.int64]]]):
    """The rows of one source, read from disk as they are asked for.

    Args:
        folder: Holds ``input_ids.npy`` and ``labelled.npy``, all rows end to end,
            ``offsets.npy`` (rows + 1), ``labelled_lengths.npy`` (rows), and ``meta.json``.

    Raises:
        ValueError: If a file is missing, torn, or not what ``meta.json`` says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.meta = json.loads((folder / "meta.json").read_text())
            self._open()
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(f"{folder}: not a whole token cache ({error})") from error
        tokens = int(self._offsets[-1])
        if not self._input_ids.length == self._labelled.length == tokens == self.meta["tokens"]:
            raise ValueError(f"{folder}: not a whole token cache (its files disagree)")

    def _open(self) -> None:
        sizes = {name: (self.folder / f"{name}.npy").stat().st_size for name in FILES}
        if sizes != self.meta["sizes"]:
            raise ValueError(f"sizes {sizes}, written were {self.meta['sizes']}")
        self._input_ids, self._labelled = (
            NpyReader(self.folder / f"{name}.npy") for name in ("input_ids", "labelled")
        )
        self._offsets, self._labelled_lengths = (
            np.load(self.folder / f"{name}.npy", mmap_mode="r")
            for name in ("offsets", "labelled_lengths")
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "meta": self.meta}  # a worker maps the files itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> dict[str, NDArray[np.int64]]:
        """Return ``input_ids`` and ``labels`` of a row, (n,) each; -100 is not in the loss."""
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])
        input_ids = self._input_ids.read(start, end).astype(np.int64)
        return {
            "input_ids": input_ids,
            "labels": np.where(self._labelled.read(start, end), input_ids, -100),
        }

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The rows' numbers of tokens, (rows,)."""
        return np.diff(self._offsets)

    @property
    def labelled_lengths(self) -> NDArray[np.int64]:
        """The rows' numbers of tokens in the loss, (rows,)."""
        return self._labelled_lengths.astype(np.int64)


def tokenized(
    source: Source,
    encoder: Encoder,
    format_name: str,
    on_bad_row: str,
    cache_dir: Path,
    announce: Announce,
) -> TokenizedDataset:
    """Open the tokens of ``source``, or make them; one process does, others wait for it.

    Args:
        source: Where the rows come from.
        encoder: Tokenises them.
        format_name: "auto", a format's name, or a dotted path.
        on_bad_row: "error", or "skip" to leave such rows out and count them by reason.
        cache_dir: Caches are folders in it, named by a hash of all that decides the tokens.
        announce: Is told the format and what became of the rows, also when nothing is done anew.

    Raises:
        ValueError: For a bad row, if they are errors, or if no row is left.
    """
    check_choice("on_bad_row", on_bad_row, ("error", "skip"))
    with Progress(f"reading {Path(source.name).name}"):
        fingerprint = source.fingerprint()
    facts = {
        "files": fingerprint,
        "format": _sha256(format_identity(format_name)) if "." in format_name else format_name,
        "tokenizer": tokenizer_fingerprint(encoder.tokenizer),
        "chat_template": encoder.template and _sha256(encoder.template),
        "train_on": encoder.train_on,
        "max_length": encoder.max_length,
        "truncation": encoder.truncation,
        "on_bad_row": on_bad_row,
    }
    versions = [VERSION, transformers.__version__, tokenizers.__version__]
    folder = cache_dir / _sha256(json.dumps([facts, versions], sort_keys=True))[:32]
    dataset = _whole(folder)
    if dataset is None:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            dataset = _whole(folder)  # another process may have made it meanwhile
            if dataset is None:
                _make(folder, facts, source, encoder, format_name, on_bad_row)
                dataset = TokenizedDataset(folder)
    announce(f"{source.name}: format {dataset.meta['format']} {dataset.meta['columns']}")
    announce(f"{source.name}: {dataset.meta['counts']}")
    return dataset


def default_cache_dir() -> Path:
    """Return ``peft_lightning/tokens`` in the user's cache folder."""
    return user_cache("tokens")


def _whole(folder: Path) -> TokenizedDataset | None:
    try:
        return TokenizedDataset(folder)
    except ValueError:
        return None


def _make(
    folder: Path,
    facts: dict[str, Any],
    source: Source,
    encoder: Encoder,
    format_name: str,
    on_bad_row: str,
) -> None:
    """Write the cache, all of it or nothing."""
    with atomic_folder(folder) as temporary:
        counts = Counts()
        format_name, columns, records = resolve_format(source.records(), format_name, source.name)
        rows = _rows(records, format_name)
        writers = {name: NpyWriter(temporary / f"{name}.npy", kind) for name, kind in FILES.items()}
        writers["offsets"].append(np.zeros(1))
        with Progress(
            f"tokenising {Path(source.name).name}", source.about_rows(), "rows"
        ) as progress:
            for encoded in _kept(rows, encoder, on_bad_row, counts):
                ids = [e.input_ids for e in encoded]
                start = writers["input_ids"].length
                writers["input_ids"].append(np.concatenate(ids))
                writers["labelled"].append(np.concatenate([e.labelled for e in encoded]))
                writers["offsets"].append(start + np.cumsum([len(i) for i in ids]))
                writers["labelled_lengths"].append(np.array([e.labelled.sum() for e in encoded]))
                progress.update(counts.read)
        if not counts.kept:
            raise ValueError(f"{source.name}: no row is left to train on: {counts}")
        meta = {
            "source": source.name,
            "facts": facts,
            "format": format_name,
            "columns": f"(columns: {', '.join(columns)})",
            "counts": str(counts),
            "rows": counts.kept,
            "tokens": writers["input_ids"].length,
            "sizes": {name: writer.close() for name, writer in writers.items()},
        }
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1))


def _rows(
    records: Iterator[tuple[Record | RowError, str]], format_name: str
) -> Iterator[tuple[Row | RowError, str]]:
    to_row = find_format(format_name)
    for record, where in records:
        row: Row | RowError
        try:
            row = record if isinstance(record, RowError) else to_row(record)
        except RowError as reason:
            row = reason
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        yield row, where


def _kept(
    rows: Iterator[tuple[Row | RowError, str]], encoder: Encoder, on_bad_row: str, counts: Counts
) -> Iterator[list[Encoded]]:
    """Yield the tokenised rows some hundred at a time, and count the others by reason."""
    while chunk := list(itertools.islice(rows, ROWS_AT_ONCE)):
        tokens = iter(encoder.encode([row for row, _ in chunk if not isinstance(row, RowError)]))
        kept = []
        for row, where in chunk:
            result = row if isinstance(row, RowError) else next(tokens)
            counts.read += 1
            if isinstance(result, Encoded):
                kept.append(result)
                counts.kept += 1
                counts.truncated += result.truncated
                continue
            if isinstance(result, LongRowError):
                raise ValueError(
                    f"{where}: {result}; raise max_length, or set truncation to truncate or drop"
                ) from result
            if on_bad_row == "error" and not isinstance(result, DroppedRowError):
                raise ValueError(
                    f"{where}: {result}. Mend the row, or set on_bad_row to skip, which leaves"
                    " such rows out and counts them"
                ) from result
            counts.reasons[result.reason] += 1
        if kept:
            yield kept


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
