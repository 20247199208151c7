"""The format of a source, detected from the columns of its first row."""

import itertools
from collections.abc import Iterator, Sequence

from peft_lightning.data.formats import COMPLETION_COLUMNS, REQUIRED_COLUMNS
from peft_lightning.data.records import LocatedRecord, RowError
from peft_lightning.messages import UserError


def detect_format(columns: Sequence[str], source: str, prompts_only: bool = False) -> str:
    """Return the name of the only format whose required columns are all in ``columns``.

    Args:
        columns: The columns of the first row.
        source: The source's name, for the message.
        prompts_only: Whether the columns of completions may be missing.

    Raises:
        UserError: If no format or several match; names the columns and the required ones.
    """
    present = set(columns)
    if prompts_only:
        present |= {
            column
            for name, column in COMPLETION_COLUMNS.items()
            if REQUIRED_COLUMNS[name][0] in present
        }
    fits = [name for name, needed in REQUIRED_COLUMNS.items() if set(needed) <= present]
    if len(fits) == 1:
        return fits[0]
    problem = f"fit several formats ({', '.join(fits)})" if fits else "fit no format"
    needs = "; ".join(
        f"{name} needs {' and '.join(cols)}" for name, cols in REQUIRED_COLUMNS.items()
    )
    raise UserError(
        f"{source}: the columns {list(columns)} {problem}. Name one with `format` ({needs}), or"
        " give the dotted path of your own function from a row to messages or text"
    )


def resolve_format(
    rows: Iterator[LocatedRecord], name: str, source: str, prompts_only: bool = False
) -> tuple[str, list[str], Iterator[LocatedRecord]]:
    """Read the first well-formed row and detect the format from its columns.

    Args:
        rows: The rows of a source; read up to the first well-formed one.
        name: "auto" to detect the format, else its name.
        source: The source's name, for the message.
        prompts_only: Whether the columns of completions may be missing.

    Returns:
        The format's name, the columns of the row, and an iterator over all rows.
    """
    head = []
    columns: list[str] = []
    for row in rows:
        head.append(row)
        if not isinstance(row[0], RowError):
            columns = list(row[0])
            break
    if name == "auto":  # without a well-formed row any format will do
        name = detect_format(columns, source, prompts_only) if columns else "text"
    return name, columns, itertools.chain(head, rows)
