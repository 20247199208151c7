"""Rows to generate from: their answers may be missing, and are left out if they are not."""

from collections.abc import Mapping, Sequence
from typing import Any

from peft_lightning.data.cache import Announce
from peft_lightning.data.formats import prompt_of, resolve_format
from peft_lightning.data.sources import Record, RowError, find_source
from peft_lightning.data.tokenization import Counts, Encoder, encode_prompt
from peft_lightning.process.progress import Progress

Prompt = tuple[int, list[int]]  # the record's index, and the token ids to generate from


def read_prompts(
    paths: list[str], encoder: Encoder, format_name: str, on_bad_row: str, announce: Announce
) -> tuple[list[Record], list[Prompt]]:
    """Read the rows of ``paths`` and tokenise what comes before their answers.

    Args:
        paths: Where the rows are.
        encoder: Its tokenizer and template are used; prompts are not cut to its length.
        format_name: "auto", a format's name, or a dotted path.
        on_bad_row: "error", or "skip" to leave such rows out and count them by reason.
        announce: Is told what became of the rows.

    Raises:
        ValueError: For a bad row, if they are errors, or if no row is left.
    """
    records: list[Record] = []
    prompts: list[Prompt] = []
    for source in map(find_source, paths):
        counts, rows = Counts(), source.records()
        name, _, rows = resolve_format(rows, format_name, source.name, prompts_only=True)
        with Progress(f"tokenising {source.name}", source.about_rows(), "rows") as progress:
            for record, where in rows:
                counts.read += 1
                progress.update(counts.read)
                try:
                    if isinstance(record, RowError):
                        raise record
                    row = prompt_of(record, name)
                    ids = encode_prompt(encoder.tokenizer, row, encoder.template or "none")
                except RowError as reason:
                    if on_bad_row == "error":
                        raise ValueError(f"{where}: {reason}") from reason
                    counts.reasons[reason.reason] += 1
                    continue
                counts.kept += 1
                prompts.append((len(records), ids))
                records.append(record)
        announce(f"{source.name}: format {name}, to generate from: {counts}")
        if not counts.kept:
            raise ValueError(f"{source.name}: no row is left to generate from: {counts}")
    return records, prompts


def assign_adapters(
    records: Sequence[Mapping[str, Any]], asked: Sequence[str] | None
) -> list[tuple[int, Any]]:
    """Return (row, adapter) of each answer to make, in the order of the rows.

    Args:
        records: If one has an ``adapter``, each is answered by the one that it names; a row
            without by the one that is asked for, if that is one. Otherwise all answer every row.
        asked: The names that were given; ``base``, for no adapter, is known besides. None if
            there is but the trained adapter, which has no name.

    Raises:
        ValueError: If a row names an adapter that was not given.
    """
    names: Sequence[str | None] = asked or [None]
    if not any("adapter" in record for record in records):
        return [(row, name) for row in range(len(records)) for name in names]
    tasks = []
    known = list(dict.fromkeys(["base", *asked])) if asked else []
    for row, record in enumerate(records):
        name = record.get("adapter", names[0] if len(names) == 1 else None)
        if name not in known:
            raise ValueError(
                f"row {row + 1} has adapter {name!r}; with --adapter NAME=FOLDER these were "
                f"given: {', '.join(known) or 'none'}"
            )
        tasks.append((row, name))
    return tasks
