"""Rows to generate from: prompts without their completions, which the rows may lack."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from peft_lightning.data.batching import RowIndices
from peft_lightning.data.files.sources import as_list, find_source
from peft_lightning.data.options import RowOptions
from peft_lightning.data.records import Record, RowCounts, RowError
from peft_lightning.data.references import References
from peft_lightning.data.rows.format_detection import resolve_format
from peft_lightning.data.rows.row_parser import RowParser
from peft_lightning.data.tokens.tokenization import RowTokenizer
from peft_lightning.messages import UserError
from peft_lightning.process.progress import Progress

Prompt = tuple[int, list[int]]  # the index of the record, and the token ids of its prompt


def read_prompts(
    paths: str | list[str] | None,
    row_tokenizer: RowTokenizer,
    options: RowOptions,
    log: Callable[[str], None],
) -> tuple[list[Record], list[Prompt], list[list[int] | None]]:
    """Read the rows of ``paths`` and tokenize what precedes their completions.

    The third list has the completion of each row, None where there is none to compare with.

    Args:
        paths: One file, folder or hub data set, or several.
        row_tokenizer: Provides the tokenizer and the chat template; its ``max_length`` is ignored.
        options: How the records are read.
        log: Receives the format and the row counts of each source.

    Raises:
        UserError: If ``paths`` is None, no row remains, or a row is malformed and ``on_bad_row``
            is "error".
    """
    if paths is None:
        raise UserError("no data to predict: give data.predict a file")
    records: list[Record] = []
    prompts: list[Prompt] = []
    references: list[list[int] | None] = []
    reader = References(row_tokenizer)
    for path in as_list(paths):
        source = find_source(path, "predict", options.encoding)
        if summary := source.summary():
            log(summary)
        counts, first_rows = RowCounts(), itertools.islice(source.records(), options.max_rows)
        resolved, rows = resolve_format(first_rows, options, source.name, prompts_only=True)
        parser = RowParser(resolved, options)
        with Progress(f"tokenizing {source.name}", source.estimated_num_rows(), "rows") as progress:
            for record, location in rows:
                counts.read += 1
                progress.update(counts.read)
                try:
                    if isinstance(record, RowError):
                        raise record
                    row = parser.prompt(record)
                    ids = row_tokenizer.encode_prompt(row)
                except RowError as error:
                    if options.on_bad_row == "error":
                        raise UserError(f"{location}: {error}") from error
                    counts.reasons[error.reason] += 1
                    continue
                except ValueError as error:
                    raise UserError(f"{location}: {error}") from error
                counts.kept += 1
                prompts.append((len(records), ids))
                records.append(record)
                references.append(reader.of(record, parser, ids))
        log(f"{source.name}: format {resolved}, to generate from: {counts}")
        if not counts.kept:
            raise UserError(f"{source.name}: no row is left to generate from: {counts}")
    return records, prompts, references


def assign_adapters(
    records: Sequence[Mapping[str, Any]], adapters: Sequence[str] | None
) -> list[tuple[int, Any]]:
    """Return a pair (row, adapter) for each completion to generate, in the order of the rows.

    Args:
        records: The rows. If any has an ``adapter``, each row is completed by the adapter that it
            names; a row without one by the only adapter of ``adapters``. Otherwise every adapter
            completes every row.
        adapters: The names of the loaded adapters; a row may also name ``base``, for no adapter.
            None if there is only the trained adapter, which has no name.

    Raises:
        UserError: If a row names an adapter that is not loaded, or names none of several.
    """
    names: Sequence[str | None] = adapters or [None]
    if not any("adapter" in record for record in records):
        return [(row, name) for row in range(len(records)) for name in names]
    tasks = []
    known = list(dict.fromkeys(["base", *adapters])) if adapters else []
    for row, record in enumerate(records):
        name = record.get("adapter", names[0] if len(names) == 1 else None)
        if name not in known:
            raise UserError(
                f"row {row + 1} has adapter {name!r}; with --adapter NAME=FOLDER these were "
                f"given: {', '.join(known) or 'none'}"
            )
        tasks.append((row, name))
    return tasks


def prompt_batches(
    prompts: Sequence[Prompt],
    tasks: Sequence[tuple[int, Any]],
    batch_size: int,
    rank: int,
    world_size: int,
) -> tuple[list[tuple[int, list[int], Any]], list[RowIndices]]:
    """Return the prompts of one rank, and batches of them in which all have the same adapter.

    Args:
        prompts: The prompt of each row.
        tasks: The pairs of ``assign_adapters``.
        batch_size: Maximum number of prompts per batch.
        rank: This rank, which takes every ``world_size``-th task of each adapter.
        world_size: Number of ranks.

    Returns:
        Triples (record index, token ids, adapter) as ``prompt_collate`` takes them, and the indices
        of the triples in each batch.
    """
    examples: list[tuple[int, list[int], Any]] = []
    batches: list[RowIndices] = []
    for name in dict.fromkeys(name for _, name in tasks):
        of_adapter = [(*prompts[row], name) for row, adapter in tasks if adapter == name]
        of_rank = of_adapter[rank::world_size]
        indices = np.arange(len(examples), len(examples) + len(of_rank))
        batches += [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
        examples += of_rank
    return examples, batches
