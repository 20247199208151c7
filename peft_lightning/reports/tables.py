"""Tables of a page: sorted by their heads, filtered by words, with rows that open.

Sorting, filtering and opening need the script of the page; without it a table shows all it has.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peft_lightning.reports.page import Html, escaped

FEWEST_TO_FILTER = 6  # fewer rows are read faster than a word is typed
MOST_IN_FULL = 25  # a longer table scrolls in its own box, below its heads
DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    """A cell that is sorted by something else than what it shows.

    Args:
        text: What it shows.
        sort: What it is sorted by: a number, or a text; None puts it last.
        title: What is shown when the mouse is over it.
        kind: good or bad for a cell that stands out; empty for others.
    """

    text: Any
    sort: float | str | None = None
    title: str = ""
    kind: str = ""


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    sortable: bool = True,
    filterable: bool = True,
    opened: Sequence[Html | None] | None = None,
) -> Html:
    """Return a table.

    Args:
        columns: The heads.
        rows: The cells of each row: a text, ``Html``, a number (to the right, sorted as a number),
            None for nothing, or a ``Cell``.
        sortable: Whether the heads sort it.
        filterable: Whether a box filters its rows, if there are more than five.
        opened: For each row what is shown when it is opened, or None for a row that is not.
    """
    if not rows:
        return Html("<p class=note>None.</p>")
    numeric = [_is_numeric([row[i] for row in rows]) for i in range(len(columns))]
    heads = "".join(
        f"<th scope=col{' class=n' * is_number}>{escaped(name)}</th>"
        for name, is_number in zip(columns, numeric, strict=True)
    )
    body = []
    for i, row in enumerate(rows):
        body.append(f"<tr>{''.join(map(_cell, row, numeric))}</tr>")
        if opened is not None and opened[i] is not None:
            body.append(f"<tr class=more><td colspan={len(columns)}>{opened[i]}</td></tr>")
    options = " data-sort" * sortable + " data-filter" * (
        filterable and len(rows) >= FEWEST_TO_FILTER
    )
    tall = " tall" * (len(rows) > MOST_IN_FULL)
    return Html(
        f'<div class="table{tall}" tabindex=0 role=region aria-label="Table">'
        f"<table{options}><thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        "</div>"
    )


def number(value: float) -> str:
    """Return a number as it is read best: four digits that count, thousands with commas."""
    if isinstance(value, int) or (abs(value) >= 1000 and math.isfinite(value)):
        return f"{value:,.0f}"
    return f"{value:.4g}".replace("e-0", "e-").replace("-", "\N{MINUS SIGN}", value < 0)


def _cell(value: Any, is_numeric: bool) -> str:
    cell = value if isinstance(value, Cell) else Cell(value, _sort_value(value))
    is_number = isinstance(cell.sort, int | float)
    kinds = " ".join(filter(None, ["n" if is_numeric else "", cell.kind]))
    shown = cell.text
    if shown is None:
        shown = DASH
    elif isinstance(shown, int | float) and not isinstance(shown, bool):
        shown = number(shown)
    attributes = f' class="{kinds}"' if kinds else ""
    if cell.sort is not None and (isinstance(value, Cell) or is_number):
        attributes += f' data-value="{html.escape(str(cell.sort), quote=True)}"'
    if cell.title:
        attributes += f' title="{html.escape(cell.title, quote=True)}"'
    return f"<td{attributes}>{escaped(shown)}</td>"


def _sort_value(value: Any) -> float | str | None:
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int | float):
        return None if math.isnan(value) else value
    return None if value is None else str(value)


def _is_numeric(cells: Sequence[Any]) -> bool:
    """Whether a column holds numbers, and perhaps cells without any."""
    found = [c.sort if isinstance(c, Cell) else _sort_value(c) for c in cells]
    known = [value for value in found if value is not None]
    return bool(known) and all(isinstance(value, int | float) for value in known)
