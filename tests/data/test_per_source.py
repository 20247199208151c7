"""Batches of one source each, in every rank at the same step, and the names of sources."""

import random

import numpy as np
import pytest

from peft_lightning.data.batching import BatchPlan, WeightedSource
from peft_lightning.data.per_source import batches_of_rank, source_names

NAMES = ["chat", "code", "maths"]


def plans(count):
    """Plans over three sources of random size, of any world size and budget."""
    draw = random.Random(0)
    for _ in range(count):
        sizes = [draw.choice([1, 2, 9, 40]) for _ in NAMES]
        ends = np.cumsum(sizes)
        pairs = zip(ends, sizes, strict=True)
        yield BatchPlan(
            np.array([draw.randint(1, 9) for _ in range(ends[-1])]),
            [WeightedSource(np.arange(end - size, end)) for end, size in pairs],
            batch_size=draw.randint(1, 5),
            tokens_per_batch=draw.choice([None, 9, 30]),
            padded=draw.random() < 0.5,
            shuffle=False,
            world_size=draw.choice([1, 2, 3]),
        )


def test_each_row_is_in_one_batch_and_each_batch_of_the_source_it_is_named_after():
    for plan in plans(60):
        seen = []
        for rank in range(plan.world_size):
            batches, length, names = batches_of_rank(plan, rank, NAMES)
            assert len(batches(0)) == length == len(names)
            for batch, name in zip(batches(0), names, strict=True):
                assert set(batch) <= set(plan.sources[NAMES.index(name)].rows)
                seen += batch.tolist()
        assert sorted(seen) == list(range(len(plan.lengths)))


def test_all_ranks_are_in_the_same_source_at_each_step():
    for plan in plans(60):
        ranks = [batches_of_rank(plan, rank, NAMES)[2] for rank in range(plan.world_size)]
        assert all(names == ranks[0] for names in ranks)


def test_the_first_batches_are_of_the_sources_in_proportion():
    sizes = [10, 30, 60]
    ends = np.cumsum(sizes)
    sources = [WeightedSource(np.arange(e - n, e)) for n, e in zip(sizes, ends, strict=True)]
    plan = BatchPlan(np.ones(100, dtype=int), sources, batch_size=1, shuffle=False)
    _, _, names = batches_of_rank(plan, 0, NAMES)
    for taken in range(1, 101):
        counts = [names[:taken].count(name) for name in NAMES]
        assert all(abs(c - taken * n / 100) <= 1 for c, n in zip(counts, sizes, strict=True))


def test_without_names_batches_mix_sources():
    plan = next(plans(1))
    batches, length, names = batches_of_rank(plan, 0, [])
    assert [b.tolist() for b in batches(0)] == [b.tolist() for b in plan.batches_of_rank(0, 0)]
    assert (length, names) == (len(plan) // plan.world_size, ())


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["data/chat.jsonl", "code.parquet"], ["chat", "code"]),
        (["a/val.jsonl", "b/val.jsonl", "c/val.csv"], ["val", "val_2", "val_3"]),
        (["val_2.jsonl", "val.jsonl", "x/val.jsonl"], ["val_2", "val", "val_3"]),
        (["chat.jsonl.gz", "owner/name", "folder/"], ["chat", "name", "folder"]),
        (["owner/name-v1.5", "owner/name:main[test]"], ["name-v1.5", "name:main[test]"]),
        ([".hidden"], [".hidden"]),
    ],
)
def test_a_source_is_named_by_the_stem_of_its_file_and_a_number_if_that_is_taken(paths, names):
    assert source_names(paths) == names
