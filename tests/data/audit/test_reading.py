"""Reading sources for an audit: by one process or several, with errors, and what fit would use."""

import dataclasses

import numpy as np
import pytest

from peft_lightning.data.audit import reading
from peft_lightning.data.audit.reading import SourceAuditor
from peft_lightning.data.files.sources import find_source
from peft_lightning.data.options import RowOptions, TokenOptions
from peft_lightning.data.tokens.tokenization import RowTokenizer
from toy_tokenizers import CHATML, byte_tokenizer


def read(path, *, processes=1, num_samples=3, seed=0, options=RowOptions(), **tokens):  # noqa: B008
    row_tokenizer = RowTokenizer(byte_tokenizer(CHATML), None, TokenOptions(**tokens))
    auditor = SourceAuditor(row_tokenizer, options, num_samples, seed, processes)
    return auditor(find_source(path))


@pytest.fixture
def mixed(jsonl):
    """1,300 rows in three chunks, some of them malformed, too long or with unused columns."""
    rows = []
    for i in range(1300):
        row = {"prompt": f"question {i}", "completion": f"answer {i % 50} " * (1 + i % 3)}
        rows.append({"prompt": "p"} if i % 100 == 7 else row | {"id": i} if i % 2 else row)
    rows[600]["completion"] = "long " * 300
    return jsonl("mixed.jsonl", rows)


def test_several_processes_take_the_notes_of_one(mixed, monkeypatch):
    monkeypatch.setattr(reading, "PARALLEL_ROWS", 1000)
    one, two = read(mixed), read(mixed, processes=2)
    for field in dataclasses.fields(one.notes):
        values = [getattr(source.notes, field.name) for source in (one, two)]
        if isinstance(values[0], np.ndarray):
            assert np.array_equal(*values), field.name
        elif field.name not in ("samples", "answers"):
            assert values[0] == values[1], field.name
    assert [s.location for s in one.notes.samples] == [s.location for s in two.notes.samples]
    assert [one.locations[i] for i in range(1300)] == [two.locations[i] for i in range(1300)]


def test_errors_are_counted_by_reason_with_the_places_of_the_first_five(mixed):
    source = read(mixed)
    assert (source.notes.sequences > 0).sum() == 1300 - 13 - 1
    missing, long = source.notes.errors.values()
    assert missing.count == 13
    assert [source.locations[i] for i, _ in missing.examples] == [
        f"{mixed}:{i}" for i in (8, 108, 208, 308, 408)
    ]
    assert "no column 'completion'" in missing.examples[0][1]
    assert (long.count, long.examples[0][0]) == (1, 600)
    assert source.notes.lengths[600] > 1024  # though it is left out


def test_findings_are_counted_once_for_each_row(mixed):
    source = read(mixed)
    found = {str(finding): tally for finding, tally in source.notes.findings.items()}
    assert found["unused column id"].count == sum(i % 2 and i % 100 != 7 for i in range(1300))
    assert source.locations[found["unused column id"].examples[0][0]] == f"{mixed}:2"


def test_the_rows_to_show_are_the_first_and_a_choice_that_the_seed_makes(mixed):
    first, second = (
        [sample.location for sample in read(mixed, num_samples=6, seed=seed).notes.samples]
        for seed in (0, 1)
    )
    assert first[0] == second[0] == f"{mixed}:1"
    assert len(set(first)) == len(set(second)) == 6
    assert set(first[1:]).isdisjoint(second[1:])
    again = [sample.location for sample in read(mixed, num_samples=6).notes.samples]
    assert again == first
    assert read(mixed, num_samples=0).notes.samples == []
    numbers = [int(place.rpartition(":")[2]) for place in first[1:]]
    assert max(numbers) > 512  # not of the first chunk alone


def test_rows_that_are_cut_keep_their_length(jsonl):
    path = jsonl("x.jsonl", [{"text": "a" * n} for n in (5, 50, 200)])
    source = read(path, max_length=20, truncation="truncate")
    assert source.notes.num_truncated == 2
    assert source.notes.lengths.tolist() == [6, 51, 201]
    assert source.lengths.tolist() == [6, 20, 20]


def test_with_truncation_error_every_long_row_is_found(jsonl):
    path = jsonl("x.jsonl", [{"text": "a" * n} for n in (5, 50, 500)])
    source = read(path, max_length=20, truncation="error")
    assert [tally.count for tally in source.notes.errors.values()] == [2]
