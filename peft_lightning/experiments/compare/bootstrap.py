"""The paired bootstrap over rows: how the means of runs vary with the rows, and together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_CHUNK = 2**22  # numbers of drawn rows that exist at once


def bootstrap_means(sums: Array, weights: Array, resamples: int, seed: int) -> Array:
    """Draw rows with replacement, the same for all runs, and return the mean of each run.

    Args:
        sums: (runs, rows).
        weights: (rows,) What the sums are divided by.
        resamples: Number of draws.
        seed: Seed of the draws.

    Returns:
        (resamples, runs)
    """
    generator = np.random.default_rng(seed)
    rows = len(weights)
    parts, size = [], max(1, _CHUNK // max(1, rows))
    for start in range(0, resamples, size):
        count = min(size, resamples - start)
        picked = generator.integers(rows, size=(count, rows)) + rows * np.arange(count)[:, None]
        times = np.bincount(picked.ravel(), minlength=count * rows).reshape(count, rows)
        total = times @ weights
        parts.append((times @ sums.T) / np.where(total, total, np.nan)[:, None])
    return np.concatenate(parts)


def within_rows(covariance: Array, counts: Sequence[bool]) -> Array:
    """Return the variance of each mean without what the groups that count have in common."""
    number = sum(counts)
    if number < 2:
        return np.diag(covariance)
    center = np.eye(len(counts)) - np.asarray(counts, float) / number
    return np.diag(center @ covariance @ center.T) * number / (number - 1)
