"""Lengths, locations and orders of turns."""

import itertools

import numpy as np
import pytest

from peft_lightning.data.audit.lengths import histogram, length_counts
from peft_lightning.data.audit.locations import Locations
from peft_lightning.data.audit.turn_order import odd_order


def test_quantiles_and_what_max_length_keeps_are_those_of_their_definitions():
    lengths = np.random.default_rng(0).permutation(np.arange(1, 201))
    found = length_counts(lengths, max_length=150)
    assert (found["min"], found["median"], found["p95"], found["max"]) == (1, 100, 190, 200)
    assert found["longer"] == 50
    for share, length in found["keeps"].items():
        assert (lengths <= length).mean() >= int(share) / 100
        assert (lengths <= length - 1).mean() < int(share) / 100
    assert length_counts(np.empty(0, dtype=np.int64), 10) == {"max_length": 10, "longer": 0}


@pytest.mark.parametrize("lengths", [[1], [7, 7, 7], [48, 92, 60], [1, 100000], [999, 1000, 1001]])
def test_every_row_is_in_the_bar_that_says_so(lengths):
    lengths = np.array(lengths)
    bars = histogram(lengths)
    assert len(bars) <= 25
    assert sum(bar["count"] for bar in bars) == len(lengths)
    for bar in bars:
        assert bar["count"] == ((lengths >= bar["from"]) & (lengths <= bar["to"])).sum()
    for before, after in itertools.pairwise(bars):
        assert after["from"] == before["to"] + 1


def test_locations_come_back_as_they_were():
    texts = [f"data/a.jsonl:{i}" for i in range(300)]
    texts += ["b.json: item 3", "c.parquet: row 17", "odd", "", "x:007", "y2/z:5 (turn 3)", "a:-1"]
    locations = Locations()
    locations.extend(texts[:100])
    locations.extend(texts[100:])
    assert len(locations) == len(texts)
    assert [locations[i] for i in range(len(texts))] == texts


@pytest.mark.parametrize(
    ("roles", "odd"),
    [
        ("system user assistant user assistant", ()),
        ("developer user assistant tool tool assistant", ()),
        ("user assistant tool assistant", ()),
        ("assistant user assistant", ("first turn from the assistant",)),
        ("user user assistant", ("two user turns in a row",)),
        ("user assistant assistant", ("two assistant turns in a row",)),
        ("user assistant user", ("last turn from the user",)),
        ("user system assistant", ("system message after the first turn",)),
        ("user tool assistant", ("tool result without a call",)),
    ],
)
def test_an_unusual_order_of_turns_is_named(roles, odd):
    assert odd_order(tuple(roles.split())) == odd
