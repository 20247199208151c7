"""The format of a source, and the columns that stand for those of the format."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from peft_lightning.data.options import RowOptions
from peft_lightning.data.records import LocatedRecord, Record, RowError
from peft_lightning.data.rows.column_detection import (
    BESIDE_TEXT,
    completion_of_template,
    context_of_instruction,
    named_columns,
    other_case,
    prompt_and_completion,
    refuse_preferences,
)
from peft_lightning.data.rows.column_paths import root_of
from peft_lightning.data.rows.columns import PromptTemplate
from peft_lightning.data.rows.formats import FORMATS, REQUIRED_COLUMNS
from peft_lightning.messages import UserError

MAX_ODD_ROWS = 1000  # rows at the start of a source that may fit no format, with on_bad_row: skip


@dataclass(frozen=True)
class ResolvedFormat:
    """The format of a source.

    Args:
        name: The name of the format, or the dotted path of a user's function.
        columns: Columns of the format, each with the column of the source that stands for it, where
            the names differ.
        found: The columns of the row that decided.
    """

    name: str
    columns: Mapping[str, str] = field(default_factory=dict)
    found: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The format and its columns as they are told at the start of a run."""
        told = [f"{column} is {source}" for column, source in self.columns.items()]
        told += [f"columns: {', '.join(self.found)}"] if self.found else []
        return f"{self.name} ({'; '.join(told)})" if told else self.name


def detect_format(
    record: Record,
    source: str,
    options: RowOptions = RowOptions(),  # noqa: B008  (frozen)
    prompts_only: bool = False,
) -> ResolvedFormat:
    """Return the only format of which ``record`` has the required columns.

    A column counts in any case, and under the names that data sets usually give it, such as
    question and answer.

    Args:
        record: A well-formed row of the source.
        source: The source's name, for the message.
        options: The format and the columns that the user names, if any.
        prompts_only: Whether the columns of completions may be missing.

    Raises:
        UserError: If no format or several match; says what to write.
    """
    found = tuple(record)
    mapping = named_columns(found, source, options, prompts_only)
    template = options.prompt and PromptTemplate(options.prompt)
    present = (set(found) - {root_of(name, found) for name in mapping.values()}) | set(mapping)
    if template:
        template.require_columns(found, source)
        present |= {"prompt"}
    named = options.format
    if named not in (*FORMATS, "auto"):
        raise AssertionError(f"{named} is a user's function")
    mapping |= other_case(present, mapping)
    present |= set(mapping)
    if template:
        mapping.pop("prompt", None)
        mapping |= {} if prompts_only else completion_of_template(present, source)
        return ResolvedFormat("prompt_completion" if named == "auto" else named, mapping, found)
    fits = [name for name, needed in REQUIRED_COLUMNS.items() if present.issuperset(needed)]
    chosen = set(options.columns)
    fits = [name for name in fits if chosen.intersection(REQUIRED_COLUMNS[name])] or fits
    if named == "auto" and not chosen:
        refuse_preferences(record, source)
    only = None if named == "auto" else named
    pair = None
    if not fits or only not in (None, *fits):
        pair = prompt_and_completion(present, source, prompts_only, only)
    if pair is not None:
        fits, mapping = [pair[0]], mapping | pair[1]
    fits = fits if only is None else [only]
    if fits == ["alpaca"]:
        mapping |= context_of_instruction(present)
    if only is not None:
        return ResolvedFormat(only, mapping, found)
    if fits == ["text"] and (others := [n for n in present if n.strip().lower() in BESIDE_TEXT]):
        other = mapping.get(min(others), min(others))
        raise UserError(
            f"{source}: the columns {list(found)} are text and {other}. Write `data.columns:"
            f" {{prompt: {mapping.get('text', 'text')}, completion: {other}}}` to train on the"
            " second, or `data.format: text` to train on the text alone"
        )
    if len(fits) == 1:
        return ResolvedFormat(fits[0], mapping, found)
    raise _no_format(found, fits, source)


def resolve_format(
    rows: Iterator[LocatedRecord], options: RowOptions, source: str, prompts_only: bool = False
) -> tuple[ResolvedFormat, Iterator[LocatedRecord]]:
    """Read the first well-formed row and detect the format from its columns.

    With ``on_bad_row`` "skip" it is the first row that fits a format.

    Args:
        rows: The rows of a source; read up to the row that decides.
        options: The format and the columns that the user names, if any.
        source: The source's name, for the message.
        prompts_only: Whether the columns of completions may be missing.

    Returns:
        The format, and an iterator over all rows.

    Raises:
        UserError: If no format or several match.
    """
    head: list[LocatedRecord] = []
    first: UserError | None = None
    user_format = options.format not in ("auto", *FORMATS)
    odd = 0
    for row in rows:
        head.append(row)
        if isinstance(row[0], RowError):
            continue
        if user_format:
            found = ResolvedFormat(options.format, {}, tuple(row[0]))
            return found, itertools.chain(head, rows)
        try:
            resolved = detect_format(row[0], source, options, prompts_only)
        except UserError as error:
            first = first or error
            odd += 1
            if options.on_bad_row == "error" or odd == MAX_ODD_ROWS:
                break
            continue
        return resolved, itertools.chain(head, rows)
    if first is not None:
        raise first
    # without a well-formed row any format will do
    name = "text" if options.format == "auto" else options.format
    return ResolvedFormat(name), itertools.chain(head, rows)


def _no_format(found: Sequence[str], fits: Sequence[str], source: str) -> UserError:
    problem = f"fit several formats ({', '.join(fits)})" if fits else "fit no format"
    needs = "; ".join(
        f"{name} needs {' and '.join(cols)}" for name, cols in REQUIRED_COLUMNS.items()
    )
    first, second = found if len(found) == 2 else ("NAME", "NAME")
    tokens = "; rows of token ids are not read, give their text" * ("input_ids" in found)
    return UserError(
        f"{source}: the columns {list(found)} {problem}. Say which are meant with `data.columns:"
        f" {{prompt: {first}, completion: {second}}}`, name a format with `data.format`"
        f" ({needs}), or give the dotted path of your own function from a row to messages or text"
        f"{tokens}"
    )
