"""The cache of tokenized rows: a source is tokenized once, for all processes and later runs."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers
from filelock import FileLock

from peft_lightning.data.conversations import Row
from peft_lightning.data.format_detection import resolve_format
from peft_lightning.data.npy import NpyWriter
from peft_lightning.data.options import RowOptions
from peft_lightning.data.records import (
    DroppedRowError,
    Findings,
    LocatedRecord,
    LongRowError,
    RowCounts,
    RowError,
)
from peft_lightning.data.row_parser import RowParser
from peft_lightning.data.sources import Source
from peft_lightning.data.tokenization import RowTokenizer, TokenizedRow
from peft_lightning.data.tokenized_dataset import FILES, TokenizedDataset
from peft_lightning.data.tokenizer import tokenizer_fingerprint
from peft_lightning.data.user_formats import format_cache_key
from peft_lightning.files import atomic_folder, user_cache
from peft_lightning.messages import UserError
from peft_lightning.process.progress import Progress

VERSION = 2  # increase it when the same rows would give other tokens
ROWS_PER_CHUNK = 512


def load_or_tokenize(
    source: Source,
    row_tokenizer: RowTokenizer,
    options: RowOptions,
    cache_dir: Path,
    log: Callable[[str], None],
) -> TokenizedDataset:
    """Load the tokenized rows of ``source`` from the cache, or tokenize them and write the cache.

    If several processes call this for the same source, one tokenizes and the others wait.

    Args:
        source: The records.
        row_tokenizer: Tokenizes the rows.
        options: How the records are read.
        cache_dir: The folder of caches; each is a folder named by a hash of its inputs.
        log: Receives the format and the row counts, also when they come from the cache.

    Raises:
        UserError: For a malformed row with ``on_bad_row`` "error", or if no row remains.
    """
    with Progress(f"reading {Path(source.name).name}"):
        files = source.fingerprint()
    fingerprint = {
        "files": files,
        **asdict(options),
        "tokenizer": tokenizer_fingerprint(row_tokenizer.tokenizer),
        "chat_templates": {n: _sha256(source) for n, source in row_tokenizer.templates.items()},
        **asdict(row_tokenizer.options),
    }
    if "." in options.format:
        fingerprint["format"] = _sha256(format_cache_key(options.format))
    versions = [VERSION, transformers.__version__, tokenizers.__version__]
    folder = cache_dir / _sha256(json.dumps([fingerprint, versions], sort_keys=True))[:32]
    dataset = _load_complete(folder)
    if dataset is None:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            dataset = _load_complete(folder)  # another process may have written it
            if dataset is None:
                _tokenize_into(folder, fingerprint, source, row_tokenizer, options)
                dataset = TokenizedDataset(folder)
    log(f"{source.name}: format {dataset.meta['format']}")
    log(f"{source.name}: {dataset.meta['counts']}")
    if dataset.meta["read"] == options.max_rows:
        log(f"{source.name}: the first {options.max_rows:,} rows are read, as data.max_rows says")
    return dataset


def default_cache_dir() -> Path:
    """Return ``peft_lightning/tokens`` in the user's cache folder."""
    return user_cache("tokens")


def _load_complete(folder: Path) -> TokenizedDataset | None:
    try:
        return TokenizedDataset(folder)
    except ValueError:
        return None


def _tokenize_into(
    folder: Path,
    fingerprint: dict[str, Any],
    source: Source,
    row_tokenizer: RowTokenizer,
    options: RowOptions,
) -> None:
    """Write the cache, all of it or nothing."""
    with atomic_folder(folder) as temporary:
        counts, findings = RowCounts(), Findings()
        first_records = itertools.islice(source.records(), options.max_rows)
        resolved, records = resolve_format(first_records, options, source.name)
        rows = _parse_rows(records, RowParser(resolved, options))
        writers = {n: NpyWriter(temporary / f"{n}.npy", dtype) for n, dtype in FILES.items()}
        writers["offsets"].append(np.zeros(1))
        number = source.estimated_num_rows()
        if options.max_rows is not None:
            number = min(options.max_rows, number or options.max_rows)
        with Progress(f"tokenizing {Path(source.name).name}", number, "rows") as progress:
            for numbers, chunk in _tokenized_chunks(
                rows, row_tokenizer, options.on_bad_row, counts, findings
            ):
                ids = [row.input_ids for row in chunk]
                start = writers["input_ids"].length
                writers["input_ids"].append(np.concatenate(ids))
                writers["loss_weights"].append(np.concatenate([row.loss_weights for row in chunk]))
                writers["offsets"].append(start + np.cumsum([len(i) for i in ids]))
                writers["num_loss_tokens"].append(
                    np.array([np.count_nonzero(row.loss_weights) for row in chunk])
                )
                writers["records"].append(np.array(numbers))
                progress.update(counts.read)
        if not counts.kept:
            raise UserError(f"{source.name}: no row is left to train on: {counts}")
        meta = {
            "source": source.name,
            "fingerprint": fingerprint,
            "format": str(resolved),
            "counts": str(counts),
            "read": counts.read,
            "findings": findings.to_json(),
            "rows": counts.sequences,
            "tokens": writers["input_ids"].length,
            "sizes": {name: writer.close() for name, writer in writers.items()},
        }
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1))


def _parse_rows(
    records: Iterator[LocatedRecord], parser: RowParser
) -> Iterator[tuple[Row | RowError, str]]:
    for record, location in records:
        row: Row | RowError
        try:
            row = record if isinstance(record, RowError) else parser.row(record)
        except RowError as error:
            row = error
        except ValueError as error:
            raise UserError(f"{location}: {error}") from error
        yield row, location


def _tokenized_chunks(
    rows: Iterator[tuple[Row | RowError, str]],
    row_tokenizer: RowTokenizer,
    on_bad_row: str,
    counts: RowCounts,
    findings: Findings,
) -> Iterator[tuple[list[int], list[TokenizedRow]]]:
    """Yield the tokenized rows in chunks with the numbers of their records, and count them all."""
    while chunk := list(itertools.islice(rows, ROWS_PER_CHUNK)):
        well_formed = [row for row, _ in chunk if not isinstance(row, RowError)]
        tokenized = iter(row_tokenizer.tokenize(well_formed))
        numbers: list[int] = []
        kept: list[TokenizedRow] = []
        for row, location in chunk:
            result = row if isinstance(row, RowError) else next(tokenized)
            counts.read += 1
            if isinstance(result, list):
                findings.add(itertools.chain(*(part.findings for part in result)), location)
                kept += result
                numbers += [counts.read - 1] * len(result)
                counts.kept += 1
                counts.sequences += len(result)
                counts.truncated += any(part.truncated for part in result)
                continue
            if isinstance(result, LongRowError):
                raise UserError(
                    f"{location}: {result}; raise max_length, or set truncation to truncate or drop"
                ) from result
            if on_bad_row == "error" and not isinstance(result, DroppedRowError):
                raise UserError(
                    f"{location}: {result}. Fix the row, or set on_bad_row to skip, which"
                    " leaves such rows out and counts them"
                ) from result
            counts.leave_out(result)
        if kept:
            yield numbers, kept


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
