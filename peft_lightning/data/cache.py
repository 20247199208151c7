"""The cache of tokenized rows: a source is tokenized once, for all processes and later runs."""

import itertools
import json
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from filelock import FileLock, Timeout

from peft_lightning.data.files.sources import Source
from peft_lightning.data.options import RowOptions
from peft_lightning.data.records import (
    DroppedRowError,
    Findings,
    LongRowError,
    RowCounts,
)
from peft_lightning.data.row_results import ROWS_PER_CHUNK, RowResult, open_rows, row_results
from peft_lightning.data.rows.user_formats import format_cache_key
from peft_lightning.data.token_writer import TokenWriter
from peft_lightning.data.tokenized_dataset import TokenizedDataset
from peft_lightning.data.tokens.tokenization import RowTokenizer, TokenizedRow
from peft_lightning.data.tokens.tokenizer import tokenizer_fingerprint
from peft_lightning.files import (
    cannot_be_used,
    is_closed,
    is_denied,
    own_name,
    sealed_folder,
    sha256_of_json,
    user_cache,
)
from peft_lightning.messages import UserError
from peft_lightning.process.progress import Progress
from peft_lightning.process.progress_line import rank

HEAD_START = 0.3  # seconds in which the first process of a run takes the lock before the others
VERSION = 3  # increase it when the same rows would give other tokens or findings


def load_or_tokenize(
    source: Source,
    row_tokenizer: RowTokenizer,
    options: RowOptions,
    cache_dir: Path,
    log: Callable[[str], None],
) -> TokenizedDataset:
    """Load the tokenized rows of ``source`` from the cache, or tokenize them and write the cache.

    If several processes call this for the same source, one tokenizes and the others wait. A cache
    that is damaged is made anew, which is said. Where the folder is shared and another user's entry
    or lock is in the way, the rows go beside it.

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
        "chat_templates": sha256_of_json(row_tokenizer.templates),
        **asdict(row_tokenizer.options),
    }
    if "." in options.format:
        fingerprint["format"] = sha256_of_json(format_cache_key(options.format))
    versions = [VERSION, transformers.__version__, tokenizers.__version__]
    folder = cache_dir / sha256_of_json([fingerprint, versions])[:32]
    places = [folder, folder.with_name(own_name(folder.name))]
    found = [_load_complete(place) for place in places]
    dataset = next((loaded for loaded, _ in found if loaded is not None), None)
    if dataset is None:
        closed = is_closed(folder)
        if damage := "" if closed else next((why for _, why in found if why), ""):
            log(f"{source.name}: its rows are tokenized anew, as their cache is damaged: {damage}")

        def tokenize(place: Path) -> None:
            _tokenize_into(place, fingerprint, source, row_tokenizer, options)

        dataset = _made_once(places[closed:], Path(source.name).name, tokenize)
    log(f"{source.name}: format {dataset.meta['format']}")
    log(f"{source.name}: {dataset.meta['counts']}")
    if dataset.meta["read"] == options.max_rows:
        log(f"{source.name}: the first {options.max_rows:,} rows are read, as data.max_rows says")
    return dataset


def _made_once(places: list[Path], name: str, tokenize: Callable[[Path], None]) -> TokenizedDataset:
    """Return the rows of the first place that can be written, by whichever process is the first.

    Args:
        places: Where the cache may be: for all users, and for this one where others are in the way.
        name: Of the source.
        tokenize: Writes the cache to a place.

    Raises:
        UserError: If no place can be written.
    """
    if rank() != 0:  # the first process shows the progress
        time.sleep(HEAD_START)
    problem = None
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{place}.lock")
            with suppress(Timeout):
                lock.acquire(timeout=0)
            if not lock.is_locked:
                with Progress(f"waiting for the process that is tokenizing {name}"):
                    lock.acquire()
            with lock:
                dataset, _ = _load_complete(place)  # another process may have written it
                if dataset is None:
                    tokenize(place)
                    dataset = TokenizedDataset(place)
                lock.release()
                return dataset
        except OSError as error:
            if not is_denied(error):
                raise
            problem = error
    assert problem is not None
    raise cannot_be_used(places[0].parent, problem) from problem


def default_cache_dir() -> Path:
    """Return ``peft_lightning/tokens`` in the user's cache folder."""
    return user_cache("tokens")


def _load_complete(folder: Path) -> tuple[TokenizedDataset | None, str]:
    """Return the rows in ``folder``, None if it does not exist or is damaged, and the damage."""
    try:
        return TokenizedDataset(folder), ""
    except UserError as error:
        return None, str(error) if folder.exists() else ""


def _tokenize_into(
    folder: Path,
    fingerprint: dict[str, Any],
    source: Source,
    row_tokenizer: RowTokenizer,
    options: RowOptions,
) -> None:
    """Write the cache, all of it or nothing."""
    with sealed_folder(folder) as temporary:
        counts, findings = RowCounts(), Findings()
        reader = open_rows(source, options)
        writer = TokenWriter(temporary)
        work = f"tokenizing {Path(source.name).name}"
        with Progress(work, reader.estimated_num_rows, "rows") as progress:
            while records := list(itertools.islice(reader.records, ROWS_PER_CHUNK)):
                results = row_results(records, reader.parser, row_tokenizer)
                numbers, chunk = _count(results, options.on_bad_row, counts, findings)
                progress.update(counts.read)
                writer.append(chunk, numbers)
        if not counts.kept:
            raise UserError(f"{source.name}: no row is left to train on: {counts}")
        meta = {
            "name": folder.name,
            "source": source.name,
            "fingerprint": fingerprint,
            "format": str(reader.format),
            "counts": str(counts),
            "read": counts.read,
            "num_too_long": len(counts.too_long),
            "num_truncated": counts.truncated,
            "longest": max(counts.longest, *counts.too_long, 0),
            "findings": findings.to_json(),
            "rows": counts.sequences,
            "tokens": writer.num_tokens,
            "sizes": writer.close(),
        }
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1))


def _count(
    results: Iterable[RowResult], on_bad_row: str, counts: RowCounts, findings: Findings
) -> tuple[list[int], list[TokenizedRow]]:
    """Count ``results``; return the sequences to keep and the numbers of their records."""
    numbers: list[int] = []
    kept: list[TokenizedRow] = []
    for result in results:
        tokens = result.tokens
        counts.read += 1
        if isinstance(tokens, list):
            findings.add(itertools.chain(*(part.findings for part in tokens)), result.location)
            kept += tokens
            numbers += [counts.read - 1] * len(tokens)
            counts.kept += 1
            counts.sequences += len(tokens)
            counts.truncated += any(part.truncated for part in tokens)
            counts.longest = max(counts.longest, *(p.full_length for p in tokens))
            continue
        if isinstance(tokens, LongRowError):
            raise UserError(
                f"{result.location}: {tokens}; raise max_length, or set truncation to truncate or"
                " drop"
            ) from tokens
        if on_bad_row == "error" and not isinstance(tokens, DroppedRowError):
            raise UserError(
                f"{result.location}: {tokens}. Fix the row, or set on_bad_row to skip, which"
                " leaves such rows out and counts them"
            ) from tokens
        counts.leave_out(tokens)
    return numbers, kept
