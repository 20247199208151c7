import random

import numpy as np
import pytest

from peft_lightning.data.batching import (
    BatchPlan,
    WeightedSource,
    halve_largest,
)


def all_rows(lengths):
    return [WeightedSource(np.arange(len(lengths)))]


def plan(lengths, sources=None, **options):
    lengths = np.array(lengths)
    return BatchPlan(lengths, sources or all_rows(lengths), **options)


def random_sources(draw, count):
    """Split rows into sources of random weight, some of which occur twice."""
    cuts = sorted(draw.randrange(1, count) for _ in range(min(2, count - 1)))
    parts = [rows for rows in np.split(np.arange(count), cuts) if len(rows)]
    parts += parts[: draw.randrange(2)]
    return [WeightedSource(rows, draw.choice([0.1, 0.5, 1.0, 1.5, 2.0, 3.3])) for rows in parts]


def random_plans(count, **fixed):
    """Plans over rows of random number and length, of any world size and budget."""
    draw = random.Random(0)
    for _ in range(count):
        longest = draw.choice([1, 7, 50])
        lengths = [draw.randint(1, longest) for _ in range(draw.choice([1, 3, 17, 90]))]
        options = {
            "tokens_per_batch": longest * draw.choice([1, 2, 5]),
            "padded": draw.random() < 0.5,
            "shuffle": draw.random() < 0.8,
            "seed": draw.randint(0, 9),
            "world_size": draw.choice([1, 1, 2, 3]),
        }
        yield plan(lengths, **(options | fixed))


def test_every_row_is_in_one_batch_of_every_epoch():
    for p in [*random_plans(60), *random_plans(40, tokens_per_batch=None, batch_size=4)]:
        for epoch in range(6):
            rows = np.concatenate(p.batches(epoch))
            assert sorted(rows) == list(range(len(p.lengths)))


def test_every_epoch_has_as_many_batches_and_the_ranks_have_as_many_each():
    for p in [*random_plans(60), *random_plans(40, tokens_per_batch=None, batch_size=4)]:
        for epoch in range(6):
            assert len(p.batches(epoch)) == len(p)
            parts = [p.batches_of_rank(epoch, rank) for rank in range(p.world_size)]
            assert {len(part) for part in parts} == {len(p) // p.world_size}


def test_no_batch_exceeds_its_budget():
    for p in random_plans(60):
        for epoch in range(6):
            for batch in filter(len, p.batches(epoch)):
                lengths = p.lengths[batch]
                used = lengths.max() * len(batch) if p.padded else lengths.sum()
                assert used <= p.tokens_per_batch


def epochs_that_need_more(plans):
    """Return each plan with its epochs whose rows do not fit into its batches one by one."""
    return [(p, e) for p in plans for e in range(20) if len(p._fill(p._rows(e))) > p._max_filled]


@pytest.mark.parametrize("padded", [False, True])
def test_an_epoch_that_needs_too_many_batches_is_packed_tighter(padded):
    # Rows of 2 and 3 tokens in batches of 4: an order decides whether 2s pair.
    plans = [plan([2, 3] * 100, tokens_per_batch=4, seed=seed, padded=padded) for seed in range(8)]
    over = epochs_that_need_more(plans)
    assert over, "the case does not occur any more"
    for p, epoch in over:
        batches = p.batches(epoch)
        assert len(batches) == len(p)
        assert sorted(np.concatenate(batches)) == list(range(200))
        assert all(p.lengths[batch].sum() <= 4 for batch in batches)
        first = {tuple(batch) for batch in p.batches(0)}
        assert not {tuple(batch) for batch in batches} <= first


def test_an_epoch_that_cannot_be_packed_tighter_takes_the_batches_of_the_first():
    # 4 + 3 + 3 twice fill two batches; the longest first, 4 + 4 leave no room for the 3s
    plans = [plan([4, 4, 3, 3, 3, 3], tokens_per_batch=10, seed=seed) for seed in range(99)]
    over = epochs_that_need_more(p for p in plans if len(p) == 2)
    assert over, "the case does not occur any more"
    for p, epoch in over:
        assert {tuple(b) for b in p.batches(epoch)} == {tuple(b) for b in p.batches(0)}


def test_batches_within_a_budget_are_nearly_full():
    lengths = np.random.default_rng(0).integers(20, 400, 1000)  # 210 tokens, 26 rows to 5,500
    for tokens, least in [(5500, 0.95), (1000, 0.80)]:
        p = plan(lengths, tokens_per_batch=tokens)
        for epoch in range(8):
            assert lengths.sum() / (len(p) * tokens) > least
            assert sum(map(len, p.batches(epoch))) == 1000


def test_the_order_depends_on_the_seed_and_the_epoch_alone():
    def order(seed, epoch):
        return [batch.tolist() for batch in plan([3] * 50, seed=seed).batches(epoch)]

    assert order(1, 2) == order(1, 2)
    assert len({str(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_without_shuffling_rows_stay_in_order():
    p = plan([3, 3, 3, 5, 1], tokens_per_batch=6, shuffle=False)
    assert [b.tolist() for b in p.batches(0)] == [[0, 1], [2], [3, 4]]
    assert [b.tolist() for b in p.batches(7)] == [[0, 1], [2], [3, 4]]
    padded = plan([3, 3, 3, 5, 1], tokens_per_batch=6, shuffle=False, padded=True)
    assert [b.tolist() for b in padded.batches(0)] == [[0, 1], [2], [3], [4]]


def test_a_step_has_the_same_rows_whatever_the_number_of_ranks():
    lengths = [1] * 27
    one = plan(lengths, batch_size=8, seed=3)
    two = plan(lengths, batch_size=4, seed=3, world_size=2)
    steps = [np.concatenate(two.batches(1)[i : i + 2]) for i in range(0, len(two), 2)]
    assert [s.tolist() for s in steps] == [b.tolist() for b in one.batches(1)]
    assert [len(b) for b in two.batches(1)] == [4, 4, 4, 4, 4, 4, 2, 1]


def test_an_epoch_goes_on_behind_its_finished_rows_whatever_batches_they_were_in():
    draw = random.Random(1)
    for p in [*random_plans(60), *random_plans(60, tokens_per_batch=None, batch_size=3)]:
        epoch = draw.randrange(3)
        options = {"shuffle": p.shuffle, "seed": p.seed, "padded": p.padded}
        options |= {"batch_size": draw.randint(1, 5), "tokens_per_batch": p.tokens_per_batch}
        new = plan(p.lengths, world_size=draw.choice([1, 2, 3]), **options)
        order = np.concatenate(new.batches(epoch)).tolist()
        assert order == np.concatenate(p.batches(epoch)).tolist()
        position = draw.randint(0, len(p) // p.world_size)
        rows = p.rows_before(epoch, position)
        assert rows == sum(len(b) for b in p.batches(epoch)[: position * p.world_size])
        start = new.resume_at(epoch, rows)
        left = new.batches(epoch)[start * new.world_size :]
        assert len(new.batches(epoch)) == len(new)
        assert [row for batch in left for row in batch] == order[rows:]
        assert new.rows_before(epoch, start) == rows
        assert not left or len(left[0])  # no step without rows
        assert sorted(np.concatenate(new.batches(epoch + 1))) == list(range(len(p.lengths)))


def test_a_mixed_epoch_goes_on_behind_its_finished_rows_whatever_batches_they_were_in():
    draw = random.Random(2)
    for p in [*random_plans(60), *random_plans(60, tokens_per_batch=None, batch_size=3)]:
        sources = random_sources(draw, len(p.lengths))
        old, new = p.with_sources(sources), p.with_sources(sources)
        new = new.with_batching(draw.randint(1, 5), draw.choice([1, 2, 3]))
        for epoch in range(3):
            of_sources = [source.rows_of_epoch(p.seed, epoch) for source in sources]
            order = np.concatenate(new.batches(epoch)).tolist()
            assert len(old.batches(epoch)) == len(old)
            if epoch == 0 or p.tokens_per_batch is None:
                assert sorted(order) == sorted(np.concatenate(of_sources))
            assert order == np.concatenate(old.batches(epoch)).tolist()
        position = draw.randint(0, len(old) // old.world_size)
        rows = old.rows_before(2, position)
        start = new.resume_at(2, rows)
        left = new.batches(2)[start * new.world_size :]
        assert [row for batch in left for row in batch] == order[rows:]


def test_the_summary_counts_the_rows_and_tokens_of_an_epoch_and_of_a_step():
    lengths = [2, 4, 6, 8]
    assert plan(lengths, batch_size=3).summary() == (
        "an epoch: 4 rows, 20 tokens, 2 steps of 10 tokens on average;"
        " data.batch_size is 3 rows; data.tokens_per_batch fills instead"
    )
    assert "1 steps of 20 tokens on average (2 batches of 10);" in plan(
        lengths, batch_size=3
    ).summary(2)
    budget = {"tokens_per_batch": 8, "shuffle": False}  # 2 and 4, 6, 8
    assert plan(lengths, **budget).summary() == (
        "an epoch: 4 rows, 20 tokens, 3 steps of 7 tokens on average;"
        " data.tokens_per_batch 8 is filled to 83%"
    )
    padded = plan(lengths, **budget, padded=True)  # 2 and 4 take 8
    assert "7 tokens on average, padding not counted; " in padded.summary()
    sources = [WeightedSource(np.arange(4), 2.0)]
    assert plan(lengths, sources, batch_size=8).summary().startswith("an epoch: 8 rows, 40 tokens")
    assert (
        plan(lengths, batch_size=2, world_size=2)
        .summary()
        .startswith(
            "an epoch: 4 rows, 20 tokens, 1 steps of 20 tokens on average (2 batches of 10)"
        )
    )


def test_too_few_rows_for_the_ranks_leave_empty_batches():
    assert [b.tolist() for b in plan([1], world_size=2).batches(0)] == [[0], []]


def test_the_largest_batches_are_halved_in_place():
    batches = [np.array(b) for b in ([0], [1, 2, 3, 4, 5], [6, 7])]
    assert [b.tolist() for b in halve_largest(batches, 5)] == [[0], [1, 2], [3], [4, 5], [6, 7]]
    assert [len(b) for b in halve_largest(batches[:1], 3)] == [1, 0, 0]


def test_a_weight_is_how_often_an_epoch_shows_each_row():
    sources = [
        WeightedSource(np.arange(4), 2.0),
        WeightedSource(np.arange(4, 10), 0.5),
        WeightedSource(np.arange(10, 12), 1.5),
    ]
    p = plan([1] * 12, sources, batch_size=3)
    seen = [np.bincount(np.concatenate(p.batches(epoch)), minlength=12) for epoch in range(2)]
    for counts in seen:
        assert counts[:4].tolist() == [2] * 4
        assert counts[4:10].sum() == 3
        assert sorted(counts[10:]) == [1, 2]
    # another half in the next epoch, so that two epochs show every row
    assert (seen[0] + seen[1]).tolist() == [4] * 4 + [1] * 6 + [3] * 2


def test_a_small_weight_shows_at_least_one_row():
    assert len(WeightedSource(np.arange(3), 0.1).rows_of_epoch(0, 0)) == 1


def test_weights_keep_the_number_of_batches():
    lengths = np.random.default_rng(0).integers(1, 40, 101)
    sources = [WeightedSource(np.arange(50), 0.5), WeightedSource(np.arange(50, 101), 1.3)]
    p = plan(lengths, sources, tokens_per_batch=60, world_size=2)
    assert {len(p.batches(epoch)) for epoch in range(50)} == {len(p)}


def test_a_row_longer_than_the_budget_is_an_error_that_names_max_length():
    with pytest.raises(
        ValueError, match=r"tokens_per_batch is 9, .* 10 tokens; .* max_length to 9"
    ):
        plan([3, 10], tokens_per_batch=9)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        plan([3], batch_size=0)
