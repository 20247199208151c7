"""How many rows an epoch takes from each source, and what the numbers of ``data.train`` mean."""

import numpy as np
import pytest

from peft_lightning.data.batching import BatchPlan, WeightedSource
from peft_lightning.data.mixing import Mixture, epoch_table, read_mixture
from peft_lightning.messages import UserError


def rows_of_epoch(train, sizes, **options):
    """Return how many rows an epoch takes from each source, by counting those of its batches."""
    weights = read_mixture(train, **options).weights(sizes)
    ends = np.cumsum(sizes)
    sources = [
        WeightedSource(np.arange(end - size, end), weight)
        for size, end, weight in zip(sizes, ends, weights, strict=True)
    ]
    rows = np.concatenate(BatchPlan(np.ones(ends[-1], dtype=int), sources).batches(0))
    return np.histogram(rows, [0, *ends])[0].tolist()


# sizes of the sources, numbers, options, rows of an epoch: from the definitions in the docs
EPOCHS = {
    "one path": ([5], "a", {}, [5]),
    "several paths": ([5, 3], ["a", "b"], {}, [5, 3]),
    # 360 rows are 0.7 of 514.3, and 0.3 of 514.3 is 154.3
    "shares": ([360, 60], {"a": 0.7, "b": 0.3}, {}, [360, 154]),
    "shares, the other way round": ([60, 360], {"a": 0.7, "b": 0.3}, {}, [840, 360]),
    # 60 rows are 0.3 of 200
    "shares, first exhausted": (
        [360, 60],
        {"a": 0.7, "b": 0.3},
        {"stopping_strategy": "first_exhausted"},
        [140, 60],
    ),
    "thirds": ([30, 20, 10], {"a": 0.333, "b": 0.333, "c": 0.333}, {}, [30, 30, 30]),
    "proportions": ([360, 60], {"a": 7, "b": 3}, {"mix": "share"}, [360, 154]),
    "percent": ([360, 60], {"a": 70, "b": 30}, {"mix": "share"}, [360, 154]),
    "a share of one source": ([7], {"a": 3}, {"mix": "share"}, [7]),
    "repeats": ([10, 10, 10], {"a": 2, "b": 0.5, "c": 1.3}, {}, [20, 5, 13]),
    "the same number": ([10, 20], {"a": 1, "b": 1}, {}, [10, 20]),
    "a part of one source": ([10], {"a": 0.3}, {}, [3]),
    "repeats that could be shares": ([10, 20], {"a": 0.5, "b": 0.5}, {"mix": "repeat"}, [5, 10]),
    "shares of the same numbers": ([10, 20], {"a": 0.5, "b": 0.5}, {}, [20, 20]),
    "many repeats": ([2, 3], {"a": 30, "b": 1}, {"mix": "repeat"}, [60, 3]),
    "rows": ([360, 60], {"a": 100, "b": 200}, {"mix": "rows"}, [100, 200]),
    "one row": ([360, 60], {"a": 1, "b": 1}, {"mix": "rows"}, [1, 1]),
    # 10 rows are a thousandth of 10,000
    "a tiny share": ([1000, 10], {"a": 0.999, "b": 0.001}, {}, [9990, 10]),
}


@pytest.mark.parametrize("case", EPOCHS)
def test_an_epoch_takes_what_the_numbers_say(case):
    sizes, train, options, expected = EPOCHS[case]
    assert rows_of_epoch(train, sizes, **options) == expected


@pytest.mark.parametrize("strategy", ["all_exhausted", "first_exhausted"])
def test_shares_are_exact_to_the_row_whatever_the_sizes(strategy):
    draw = np.random.default_rng(0)
    for _ in range(300):
        sizes = draw.integers(1, 5000, draw.integers(2, 6)).tolist()
        shares = draw.dirichlet(np.ones(len(sizes))) + 1e-3
        shares /= shares.sum()
        mixture = Mixture("share", tuple(shares), strategy)
        weights = mixture.weights(sizes)
        taken = [
            WeightedSource(np.arange(size), weight).records_per_epoch
            for size, weight in zip(sizes, weights, strict=True)
        ]
        limit = max if strategy == "all_exhausted" else min
        rows = limit(size / share for size, share in zip(sizes, shares, strict=True))
        for size, share, n in zip(sizes, shares, taken, strict=True):
            assert n == max(1, round(share * rows))
            assert n >= size if strategy == "all_exhausted" else n <= size


def test_in_all_exhausted_epochs_every_row_occurs_and_no_row_much_more_often_than_another():
    (weight, _) = Mixture("share", (0.3, 0.7)).weights([60, 360])
    seen = np.bincount(WeightedSource(np.arange(60), weight).rows_of_epoch(0, 0))
    assert set(seen) == {2, 3}  # 154 of 60


def test_a_part_of_a_source_is_another_one_in_each_epoch_until_all_rows_were_taken():
    (weight,) = read_mixture({"a": 4}, mix="rows").weights([12])
    source = WeightedSource(np.arange(12), weight)
    parts = [source.rows_of_epoch(seed=3, epoch=epoch).tolist() for epoch in range(3)]
    assert sorted(row for part in parts for row in part) == list(range(12))


MISTAKES = {
    "no number": ({"a": "x"}, {}, r"must be above 0, got a: 'x'"),
    "a text of a number": ({"a": "0.5"}, {}, r"must be above 0, got a: '0\.5'"),
    "a switch": ({"a": True}, {}, r"must be above 0, got a: True"),
    "nothing": ({"a": None}, {}, r"must be above 0, got a: None"),
    "zero": ({"a": 1, "b": 0.0}, {}, r"must be above 0, got b: 0\.0"),
    "below zero": ({"a": -1}, {}, r"must be above 0, got a: -1"),
    "nan": ({"a": float("nan")}, {}, r"must be above 0, got a: nan"),
    "infinite": ({"a": float("inf")}, {}, r"must be above 0, got a: inf"),
    "rows or percent": (
        {"a": 70, "b": 30},
        {},
        r"the numbers 70, 30: set data\.mix to rows \(rows an epoch\), share .* or repeat",
    ),
    "rows of one source": ({"a": 5000}, {}, r"the numbers 5000: set data\.mix to rows"),
    "shares that miss one": (
        {"a": 0.7, "b": 0.2},
        {},
        r"the numbers 0\.7, 0\.2, whose sum is 0\.9: shares must sum to 1; set data\.mix to repeat",
    ),
    "shares that are none": (
        {"a": 0.7, "b": 0.2},
        {"mix": "share"},
        r"must sum to 1 or be whole .* got \{'a': 0\.7, 'b': 0\.2\}, whose sum is 0\.9",
    ),
    "half a row": ({"a": 1.5}, {"mix": "rows"}, r"needs whole numbers of rows, got \{'a': 1\.5\}"),
    "shares of paths": (
        ["a", "b"],
        {"mix": "share"},
        r"data\.mix is share, but data\.train has no numbers; write .* \{a\.jsonl: 0\.7, b\.",
    ),
    "rows of a path": ("a", {"mix": "rows"}, r"data\.train has no numbers; .* \{a\.jsonl: 5000\}"),
    "a mix that is none": (
        {"a": 1},
        {"mix": "shares"},
        r"data\.mix must be auto, repeat, share or rows, got 'shares'; did you mean share\?",
    ),
    "a strategy that is none": (
        {"a": 0.5, "b": 0.5},
        {"stopping_strategy": "all"},
        r"data\.stopping_strategy must be all_exhausted or first_exhausted, got 'all'",
    ),
    "a strategy without shares": (
        {"a": 2, "b": 1},
        {"stopping_strategy": "first_exhausted"},
        r"how long an epoch is with shares, but data\.mix is repeat; set data\.mix to share",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_numbers_that_are_wrong_or_ambiguous_are_an_error_that_says_what_to_write(case):
    train, options, message = MISTAKES[case]
    with pytest.raises(UserError, match=message) as error:
        read_mixture(train, **options)
    assert "\n" not in str(error.value)


def test_the_table_shows_rows_and_shares_of_rows_and_of_tokens_in_the_loss():
    sources = [WeightedSource(np.arange(4)), WeightedSource(np.arange(4, 6), 1.5)]
    loss_tokens = np.array([1, 1, 1, 1, 2, 2])  # an epoch has 4 and 3 * 2
    lines = epoch_table(["big.jsonl", "b.jsonl"], sources, loss_tokens).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["big.jsonl", "4", "4", "1.00", "x", "57.1%", "40.0%"],
        ["b.jsonl", "2", "3", "1.50", "x", "42.9%", "60.0%"],
    ]
    assert lines[0].split("  ")[0] == "training source"
    assert len({len(line) for line in lines}) == 1


def test_rows_and_shares_count_records_also_where_these_become_several_sequences():
    counts = [[1] * 6, [1, 3, 2, 4]]  # sequences of each record: 6 and 10
    records = np.repeat(np.arange(10), counts[0] + counts[1])
    rows = [np.arange(6), np.arange(6, 16)]
    for train, options, expected in [
        ({"a": 0.5, "b": 0.5}, {}, [6, 6]),
        ({"a": 2, "b": 3}, {"mix": "rows"}, [2, 3]),
        ({"a": 0.5, "b": 1.5}, {"mix": "repeat"}, [3, 6]),
    ]:
        weights = read_mixture(train, **options).weights([6, 4])
        sources = [
            WeightedSource(r, weight, records) for r, weight in zip(rows, weights, strict=True)
        ]
        plan = BatchPlan(np.ones(16, dtype=int), sources, batch_size=3)
        for epoch in range(9):
            seen = np.bincount(np.concatenate(plan.batches(epoch)), minlength=16)
            first = seen[np.unique(records, return_index=True)[1]]
            assert [first[:6].sum(), first[6:].sum()] == expected
            assert (seen == first[records]).all()  # a record is taken whole
            assert len(plan.batches(epoch)) == len(plan)
            assert all(len(batch) <= 3 for batch in plan.batches(epoch))


def test_the_table_and_the_summary_count_records_and_say_how_many_sequences_they_are():
    records = np.array([0, 1, 2, 2, 2, 3])
    sources = [
        WeightedSource(np.arange(2), 1, records),
        WeightedSource(np.arange(2, 6), 1.5, records),
    ]
    lines = epoch_table(["a", "b"], sources, np.array([1, 1, 2, 2, 2, 2])).splitlines()
    assert [line.split() for line in lines[1:]] == [  # 2 * 1 and 3 * 8 / 2 tokens
        ["a", "2", "2", "1.00", "x", "40.0%", "14.3%", "1.00"],
        ["b", "2", "3", "1.50", "x", "60.0%", "85.7%", "2.00"],
    ]
    assert lines[0].endswith("sequences a row")
    plan = BatchPlan(np.ones(6, dtype=int), [*sources[1:], sources[0]])
    assert plan.summary().startswith("an epoch: 5 rows (")
    assert "data.batch_size is 8 sequences" in plan.summary()
