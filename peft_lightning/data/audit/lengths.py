"""Lengths of rows: their distribution, and what ``max_length`` keeps of them."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

BARS = 20  # of a histogram, about
SHARES = (95, 99, 100)  # per cent of the rows that a max_length keeps


def length_counts(lengths: NDArray[np.int64], max_length: int) -> dict[str, Any]:
    """Return the distribution of the numbers of tokens of rows.

    Args:
        lengths: (rows,) before truncation, of the rows that are used and of those too long.
        max_length: Maximum number of tokens of a row.

    Returns:
        min, median, p95, max, a histogram, how many rows are longer than ``max_length``, and under
        ``keeps`` the ``max_length`` that would keep 95, 99 and 100 % of the rows.
    """
    if not len(lengths):
        return {"max_length": max_length, "longer": 0}
    ordered = np.sort(lengths)
    return {
        "min": int(ordered[0]),
        "median": _at(ordered, 50),
        "p95": _at(ordered, 95),
        "max": int(ordered[-1]),
        "max_length": max_length,
        "longer": int((lengths > max_length).sum()),
        "keeps": {str(share): _at(ordered, share) for share in SHARES},
        "histogram": histogram(ordered),
    }


def histogram(lengths: NDArray[np.int64]) -> list[dict[str, int]]:
    """Return about ``BARS`` bars or fewer of a round width: from, to (inclusive) and count."""
    spread = int(lengths.max() - lengths.min()) + 1
    width = max(1, math.ceil(spread / BARS))
    step = 10 ** max(0, len(str(width)) - 1)
    width = math.ceil(width / step) * step
    bars = (np.maximum(lengths, 1) - 1) // width
    first = int(bars.min())
    return [
        {"from": i * width + 1, "to": (i + 1) * width, "count": int(count)}
        for i, count in enumerate(np.bincount(bars - first), start=first)
    ]


def _at(ordered: NDArray[np.int64], share: int) -> int:
    """Return the smallest length such that ``share`` per cent of the rows are no longer."""
    return int(ordered[max(0, math.ceil(len(ordered) * share / 100) - 1)])
