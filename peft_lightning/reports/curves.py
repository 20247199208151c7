"""The points of a curve that are drawn."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MOST_POINTS = 1000  # of one curve; a longer one keeps the lowest and highest of each stretch


def usable_points(
    columns: Sequence[NDArray[np.float64]], log_x: bool, log_y: bool
) -> list[NDArray[np.float64]]:
    """Return the columns in the order of x, without what cannot be drawn."""
    x = columns[0]
    kept = np.isfinite(x) & ((x > 0) | (not log_x))
    order = np.argsort(x[kept], kind="stable")
    found = [column[kept][order] for column in columns]
    for column in found[1:]:
        column[~np.isfinite(column) | (log_y & (column <= 0))] = math.nan
    return found


def shortened(columns: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """Return at most about ``MOST_POINTS`` of a curve: of each stretch the lowest and highest."""
    count = len(columns[0])
    if count <= MOST_POINTS:
        return list(columns)
    kept = {0, count - 1}
    for stretch in np.array_split(np.arange(count), MOST_POINTS // 2):
        y = columns[1][stretch]
        if np.isfinite(y).any():
            kept |= {int(stretch[np.nanargmin(y)]), int(stretch[np.nanargmax(y)])}
    places = sorted(kept)
    return [column[places] for column in columns]
