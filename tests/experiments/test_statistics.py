"""Statistics of groups of runs: against their definitions, and against a truth that is known."""

import math

import numpy as np
import pytest

from peft_lightning.experiments.compare.statistics import (
    Scores,
    bootstrap_means,
    compare_groups,
    holm,
)
from peft_lightning.experiments.compare.student_t import quantile, two_sided_p


def simulated(number, seeds=(3, 3), spread=(0.02, 0.02), rows=100, own=0.1, with_base=False):
    """Return losses of two groups whose true difference is 0: rows, seeds and groups vary."""
    draw = np.random.default_rng(number)
    tokens = draw.integers(5, 60, rows).astype(float)
    difficulty = draw.gamma(2, 0.5, rows)
    groups = []
    for i, name in enumerate("ab"):
        of_group = difficulty + draw.normal(0, own, rows)
        of_seed = draw.normal(0, spread[i], (seeds[i], 1))
        has_seed = not (with_base and name == "b")
        groups.append(Scores(name, (of_group + of_seed) * tokens, has_seed))
    return groups, tokens


def coverage(simulations, **options):
    """Return how often the 95 % interval of the difference holds the truth, which is 0."""
    held = 0
    for number in range(simulations):
        groups, tokens = simulated(number, **options)
        found = compare_groups(groups, tokens, resamples=200, seed=number)
        difference = found.differences["a", "b"]
        held += difference.low <= 0 <= difference.high
    return held / simulations


def test_quantiles_of_t_are_those_of_its_tables():
    # two-sided 95 % points: Abramowitz and Stegun 1964, table 26.10
    for df, point in ((1, 12.706), (2, 4.303), (4, 2.776), (10, 2.228), (math.inf, 1.960)):
        assert quantile(0.95, df) == pytest.approx(point, abs=1e-3)
        assert two_sided_p(point, df) == pytest.approx(0.05, abs=1e-4)
    assert two_sided_p(math.inf, 3) == 0
    assert two_sided_p(0, 3) == 1


def test_a_mean_is_over_tokens_and_not_over_rows():
    sums, tokens = np.array([[6.0, 1.0]]), np.array([3.0, 1.0])
    found = compare_groups([Scores("a", sums)], tokens, resamples=100)
    assert found.means["a"].value == 7 / 4


def test_a_bootstrap_draws_the_same_rows_for_all_runs():
    draw = np.random.default_rng(0)
    tokens = draw.integers(1, 9, 40).astype(float)
    losses = draw.normal(1, 0.3, 40) * tokens
    means = bootstrap_means(np.stack([losses, losses + tokens]), tokens, 500, seed=1)
    assert means.shape == (500, 2)
    assert means[:, 1] - means[:, 0] == pytest.approx(np.ones(500))


def test_the_bootstrap_has_the_standard_error_of_a_ratio():
    # delta method: sum(w^2 (x - m)^2) / sum(w)^2; the bootstrap's own error is 1 / sqrt(2 B)
    draw = np.random.default_rng(3)
    tokens = draw.integers(20, 60, 400).astype(float)
    values = draw.normal(1, 0.3, 400)
    mean = (values * tokens).sum() / tokens.sum()
    error = math.sqrt((tokens**2 * (values - mean) ** 2).sum()) / tokens.sum()
    means = bootstrap_means((values * tokens)[None], tokens, 10_000, seed=0)
    assert means.std() == pytest.approx(error, rel=0.03)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"own": 0.01},  # the seeds alone
        {"spread": (0.0, 0.0)},  # the rows alone
        {"spread": (0.03, 0.01)},
        {"seeds": (3, 1), "spread": (0.02, 0.0), "with_base": True},
    ],
    ids=["rows and seeds", "seeds", "rows", "uneven seeds", "against the base"],
)
def test_intervals_of_95_percent_hold_the_truth_in_95_of_100(options):
    # of 500 simulations: 0.95 has a standard error of sqrt(0.95 * 0.05 / 500) = 0.010
    assert 0.92 <= coverage(500, **options) <= 0.99


def test_an_interval_without_the_noise_of_seeds_would_be_too_short():
    groups, tokens = simulated(5)
    found = compare_groups(groups, tokens)
    one_seed_each = [Scores(g.name, g.sums[:1]) for g in groups]
    alone = compare_groups(one_seed_each, tokens)
    assert found.differences["a", "b"].with_seeds
    assert not alone.differences["a", "b"].with_seeds
    assert not alone.means["a"].with_seeds
    missed = 0
    for number in range(200):  # the bootstrap of the rows knows nothing of these seeds
        groups, tokens = simulated(number, own=0.01)
        rows_only = [Scores(g.name, g.sums.mean(0, keepdims=True)) for g in groups]
        d = compare_groups(rows_only, tokens, resamples=200).differences["a", "b"]
        missed += not d.low <= 0 <= d.high
    assert missed / 200 > 0.4


def test_exact_match_has_intervals_that_hold_the_truth_near_its_bounds_too():
    held = {"difference": 0, "mean": 0}
    p, q, rows = 0.97, 0.9, 40
    for number in range(300):
        draw = np.random.default_rng(number)
        luck = draw.uniform(size=rows)
        other = np.where(draw.uniform(size=rows) < 0.5, luck, draw.uniform(size=rows))
        right = [(luck < p).astype(float)[None], (other < q).astype(float)[None]]
        groups = [Scores(name, s, has_seed=False) for name, s in zip("ab", right, strict=True)]
        found = compare_groups(groups, np.ones(rows), bounded=True, resamples=200, seed=number)
        difference, mean = found.differences["a", "b"], found.means["a"]
        held["difference"] += difference.low <= p - q <= difference.high
        held["mean"] += mean.low <= p <= mean.high <= 1
    assert held["difference"] / 300 >= 0.93
    assert held["mean"] / 300 >= 0.93


def test_no_success_in_20_rows_does_not_exclude_one_in_ten():
    # the rule of three: 3 / 20 is the largest rate that 20 failures are compatible with
    found = compare_groups([Scores("a", np.zeros((1, 20)), False)], np.ones(20), bounded=True)
    mean = found.means["a"]
    assert (mean.value, mean.low) == (0, 0)
    assert 0.1 < mean.high < 0.2


def test_holm_is_holms_definition():
    p = [0.01, 0.04, 0.03, 0.005]
    # sorted .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04, made increasing
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_equal_groups_are_seldom_called_different_however_many_are_compared():
    # 10 equal groups have 45 pairs: 5 % of experiments may name any of them
    wrong = 0
    for number in range(100):
        draw = np.random.default_rng(number)
        losses = draw.normal(1, 0.3, 60)
        losses = losses + draw.normal(0, 0.02, (10, 3, 1)) + draw.normal(0, 0.1, (10, 1, 60))
        groups = [Scores(str(i), part) for i, part in enumerate(losses)]
        found = compare_groups(groups, np.ones(60), resamples=200, seed=number)
        wrong += any(d.is_beyond_noise for d in found.differences.values())
    assert wrong <= 11  # binomial(100, 0.05): above with probability 0.4 %


def test_a_difference_beyond_noise_is_found_and_has_its_sign():
    groups, tokens = simulated(1)
    better = Scores("c", groups[0].sums - 0.2 * tokens)
    found = compare_groups([*groups, better], tokens)
    difference = found.differences["c", "a"]
    assert difference.is_beyond_noise
    assert difference.value == pytest.approx(-0.2)
    assert found.differences["a", "c"].value == pytest.approx(0.2)
    assert not found.differences["a", "b"].is_beyond_noise


def test_a_group_of_one_seed_takes_the_spread_of_the_others():
    groups, tokens = simulated(2, seeds=(3, 1))
    found = compare_groups(groups, tokens)
    assert found.seed_spread["b"] is None
    assert found.pooled_spread == pytest.approx(found.seed_spread["a"])
    assert found.differences["a", "b"].with_seeds
    assert found.means["b"].with_seeds


def test_the_same_numbers_give_the_same_intervals():
    groups, tokens = simulated(3)
    assert compare_groups(groups, tokens) == compare_groups(groups, tokens)


def test_runs_without_any_difference_are_not_different():
    groups, tokens = simulated(4)
    found = compare_groups([groups[0], Scores("same", groups[0].sums)], tokens)
    assert found.differences["a", "same"].value == 0
    assert not found.differences["a", "same"].is_beyond_noise
    flat = [Scores(n, np.zeros((1, 9)), has_seed=False) for n in "ab"]
    assert compare_groups(flat, np.ones(9)).differences["a", "b"].p == 1


def test_fifty_runs_of_300_rows_take_seconds():
    draw = np.random.default_rng(0)
    groups = [Scores(str(i), draw.normal(1, 0.3, (1, 300))) for i in range(50)]
    found = compare_groups(groups, np.ones(300))
    assert len(found.differences) == 50 * 49
