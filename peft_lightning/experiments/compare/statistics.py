"""Which groups of runs differ beyond noise: rows and seeds as its two sources.

A *group* is runs that differ only in their seed; all are evaluated on the same rows. A mean over
rows varies with the rows that were drawn for validation, and with the seed of training. Their
variances add up (the law of total variance), so the standard error of a difference is

    sqrt(V_rows + s_a ** 2 / n_a + s_b ** 2 / n_b)

``V_rows`` is the variance of the difference under a *paired bootstrap*: rows are drawn with
replacement, the same for all runs (Efron and Tibshirani 1993, An Introduction to the Bootstrap,
chapter 6; Koehn 2004 for paired differences). ``s`` is the standard deviation between the seeds of
a group, ``n`` their number: the noise floor, which rows alone leave out (Bouthillier et al. 2021,
Accounting for Variance in Machine Learning Benchmarks, arXiv:2103.03098). Groups may vary
differently, so their variances are not pooled (Welch 1947), and the interval is that of Student's t
with Satterthwaite's degrees of freedom (1946, Biometrics Bulletin 2, 110-114): with 3 seeds, a
normal interval or a bootstrap over 3 seeds would be far too short. Equal seeds of two groups are
not paired, although the same order of rows may move both alike: that errs on the side of caution.
``tests/experiments/test_statistics.py`` measures how often the intervals hold the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from peft_lightning.experiments.compare.bootstrap import bootstrap_means, within_rows
from peft_lightning.experiments.compare.student_t import quantile, two_sided_p
from peft_lightning.reports.comparison import LEVEL, Estimate

Array = NDArray[np.float64]

RESAMPLES = 10_000


@dataclass(frozen=True)
class Scores:
    """The scores of a group: sums over the tokens of each row, or one number a row.

    Args:
        name: The group's name.
        sums: (seeds, rows), such as the summed loss of each row in nats.
        has_seed: Whether another seed would give other numbers; not so for the untouched base.
    """

    name: str
    sums: Array
    has_seed: bool = True


@dataclass(frozen=True)
class Statistics:
    """Groups of runs, compared by one score.

    Args:
        means: The mean of each group, over its seeds.
        to_compare: The same with the intervals to compare groups by: without what all groups have
            in common on a row (Morey 2008, Tutorials in Quantitative Methods for Psychology 4,
            61-64), which says nothing of their differences. The base is not one of them.
        seed_spread: The standard deviation between the seeds of a group; None of a single one.
        pooled_spread: That of all groups with several seeds together; None if there is no such.
        differences: Of the groups (a, b): the mean of ``a`` minus that of ``b``; for each ordered
            pair.
        rows: Number of rows.
    """

    means: dict[str, Estimate]
    to_compare: dict[str, Estimate]
    seed_spread: dict[str, float | None]
    pooled_spread: float | None
    differences: dict[tuple[str, str], Estimate]
    rows: int


def compare_groups(
    groups: Sequence[Scores],
    weights: Array,
    *,
    bounded: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Statistics:
    """Compare the means of groups of runs, each with each.

    Args:
        groups: The scores, all of the same rows.
        weights: (rows,) What the sums are divided by: the tokens of each row, or ones.
        bounded: Whether scores are between 0 and 1, as 0/1 ones are. Then the variances are
            computed with pseudo-observations (Agresti and Coull 1998; Agresti and Min 2005 for
            paired differences), as no error in 20 rows does not mean that there never is one.
        resamples: Draws of the bootstrap.
        seed: Of these draws.

    Returns:
        The means and differences. A group with one seed has the pooled spread of the others; if
        there is none, the intervals are of the rows alone, and say so.
    """
    per_seed = {g.name: g.sums.sum(1) / weights.sum() for g in groups}
    summed = np.stack([g.sums.mean(0) for g in groups])
    drawn = bootstrap_means(summed, weights, resamples, seed)
    rows = int(np.count_nonzero(weights))
    covariance = np.atleast_2d(np.cov(drawn, rowvar=False)) * rows / max(1, rows - 1)
    pooled, pooled_df = _pooled_variance([per_seed[g.name] for g in groups if g.has_seed])
    noise = [_seed_noise(per_seed[g.name], g.has_seed, pooled, pooled_df) for g in groups]
    centers = [float(per_seed[g.name].mean()) for g in groups]
    within = within_rows(covariance, [g.has_seed for g in groups])
    means: dict[str, Estimate] = {}
    to_compare: dict[str, Estimate] = {}
    pairs = {}
    for i, group in enumerate(groups):
        for found, variance in ((means, covariance[i, i]), (to_compare, within[i])):
            of_mean = _with_pseudo_rows(variance, rows, 2, 4) if bounded else max(0.0, variance)
            center, error, df, known = _combined(centers[i], of_mean, rows, [noise[i]])
            margin = quantile(LEVEL, df) * error
            low, high = center - margin, center + margin
            if bounded:
                low, high = max(0.0, low), min(1.0, high)
            found[group.name] = Estimate(center, low, high, with_seeds=known)
        for j in range(i):
            of_rows = covariance[i, i] + covariance[j, j] - 2 * covariance[i, j]
            of_rows = _with_pseudo_rows(of_rows, rows, 1, 2) if bounded else max(0.0, of_rows)
            difference = centers[i] - centers[j]
            pairs[i, j] = _combined(difference, of_rows, rows, [noise[i], noise[j]])
    adjusted = holm([_p(value, error, df) for value, error, df, _ in pairs.values()])
    differences = {}
    for ((i, j), (value, error, df, known)), p in zip(pairs.items(), adjusted, strict=True):
        margin, names = quantile(LEVEL, df) * error, (groups[i].name, groups[j].name)
        differences[names] = Estimate(value, value - margin, value + margin, p, known)
        differences[names[::-1]] = Estimate(-value, -value - margin, -value + margin, p, known)
    spread = {
        g.name: float(per_seed[g.name].std(ddof=1)) if len(g.sums) > 1 else None for g in groups
    }
    to_compare = {g.name: to_compare[g.name] for g in groups if g.has_seed}
    pooled_spread = float(np.sqrt(pooled)) if pooled_df else None
    return Statistics(means, to_compare, spread, pooled_spread, differences, rows)


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979, Scand. J. Statistics 6, 65-70).

    The probability of one false finding or more among all of them stays below the level.
    """
    order = np.argsort(p, kind="stable")
    factors = len(p) - np.arange(len(p))
    steps = np.maximum.accumulate(np.asarray(p, float)[order] * factors)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1.0, steps)
    return [float(value) for value in corrected]


def _pooled_variance(groups: Sequence[Array]) -> tuple[float, int]:
    """Return the variance between seeds over all groups, and its degrees of freedom."""
    df = sum(len(values) - 1 for values in groups)
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in groups)
    return (squares / df if df else 0.0), df


def _seed_noise(
    values: Array, has_seed: bool, pooled: float, pooled_df: int
) -> tuple[float, float] | None:
    """Return the variance of a group's mean by its seeds with its degrees of freedom, or None."""
    if not has_seed:
        return 0.0, np.inf
    if len(values) > 1:
        return float(values.var(ddof=1)) / len(values), len(values) - 1
    return (pooled, pooled_df) if pooled_df else None


def _combined(
    value: float, of_rows: float, rows: int, seeds: Sequence[tuple[float, float] | None]
) -> tuple[float, float, float, bool]:
    """Return a value with its standard error, its degrees of freedom, and if seeds are in it."""
    known = [part for part in seeds if part is not None]
    parts = [(of_rows, float(max(1, rows - 1))), *known]
    variance = sum(part for part, _ in parts)
    below = sum(part**2 / df for part, df in parts)
    df = variance**2 / below if below else np.inf
    return value, float(np.sqrt(variance)), df, len(known) == len(seeds)


def _with_pseudo_rows(variance: float, rows: int, squares: float, extra: int) -> float:
    """Return the variance of a mean over rows with ``extra`` rows that vary by ``squares``."""
    return float((max(0.0, variance) * rows**2 + squares) / (rows + extra) ** 2)


def _p(value: float, error: float, df: float) -> float:
    if error == 0:
        return float(value == 0)
    return two_sided_p(value / error, df)
