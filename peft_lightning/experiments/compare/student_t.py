"""Student's t distribution: probabilities and quantiles, for any number of degrees of freedom."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_POINTS = 20_001
_FAR = 40.0  # standard deviations beyond which nothing is left of a normal distribution


def two_sided_p(t: float, df: float) -> float:
    """Return the probability of a value at least as far from 0 as ``t``.

    Args:
        t: The statistic; infinite values have probability 0.
        df: Degrees of freedom, at least 1; may be fractional or infinite.
    """
    angles, inside = _cumulative(_rounded(df))
    angle = np.arctan(abs(t) / np.sqrt(_rounded(df)))
    return float(max(0.0, 1.0 - np.interp(angle, angles, inside)))


def quantile(level: float, df: float) -> float:
    """Return the value that a share ``level`` of the distribution is nearer to 0 than.

    Args:
        level: Such as 0.95, for which it is 1.96 with many degrees of freedom.
        df: Degrees of freedom, at least 1; may be fractional or infinite.
    """
    angles, inside = _cumulative(_rounded(df))
    return float(np.tan(np.interp(level, inside, angles)) * np.sqrt(_rounded(df)))


def _rounded(df: float) -> float:
    """Return ``df`` with three digits, and as much as 100,000: then it is a normal distribution."""
    return float(np.clip(float(f"{df:.3g}"), 1.0, 1e5)) if np.isfinite(df) else 1e5


@lru_cache(maxsize=256)
def _cumulative(df: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return angles, and how much of the distribution is within each of them.

    With t = sqrt(df) tan(a) the density of t becomes cos(a) ** (df - 1), up to a factor, on a
    bounded interval: it is integrated by the trapezoidal rule.
    """
    widest = min(np.pi / 2, _FAR / np.sqrt(df))
    angles = np.linspace(0.0, widest, _POINTS)
    density = np.cos(angles) ** (df - 1)
    steps = (density[1:] + density[:-1]) / 2
    inside = np.concatenate([[0.0], np.cumsum(steps)])
    return angles, inside / inside[-1]
