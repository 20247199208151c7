"""Folders that `datasets` wrote with `save_to_disk`, read as they say."""

import json

import datasets
import pytest

from files_of_rows import ROWS, arrow_bytes, records
from peft_lightning.data.files.sources import find_source


@pytest.fixture
def saved(tmp_path):
    datasets.Dataset.from_list(ROWS * 3).save_to_disk(tmp_path / "x", num_shards=2)
    return tmp_path / "x"


@pytest.fixture
def saved_splits(tmp_path):
    parts = {"train": ROWS, "validation": ROWS[:1], "test": ROWS[1:]}
    made = {name: datasets.Dataset.from_list(rows) for name, rows in parts.items()}
    datasets.DatasetDict(made).save_to_disk(tmp_path / "x")
    return tmp_path / "x"


def test_the_files_are_read_in_the_order_of_the_state(saved):
    assert records(saved) == ROWS * 3
    state = json.loads((saved / "state.json").read_text())
    state["_data_files"].reverse()
    (saved / "state.json").write_text(json.dumps(state))
    assert records(saved) == [ROWS[1], ROWS[0]] * 3  # 3 rows in each file


def test_caches_and_side_files_are_left_out(saved):
    (saved / "cache-0123.arrow").write_bytes(arrow_bytes([{"a": 1}]))
    assert records(saved) == ROWS * 3
    assert find_source(str(saved)).left_out == (
        "cache-0123.arrow",
        "dataset_info.json",
        "state.json",
    )


def test_a_slice_is_saved_without_the_other_rows(tmp_path):
    datasets.Dataset.from_list(ROWS * 3).select([5, 0]).save_to_disk(tmp_path / "x")
    assert records(tmp_path / "x") == [ROWS[1], ROWS[0]]


def test_the_columns_that_were_chosen_are_read(tmp_path):
    dataset = datasets.Dataset.from_list(ROWS).with_format(columns=["prompt"])
    dataset.save_to_disk(tmp_path / "x")
    assert records(tmp_path / "x") == [{"prompt": row["prompt"]} for row in ROWS]


@pytest.mark.parametrize(
    ("suffix", "split", "rows"),
    [
        ("", "train", ROWS),
        ("", "val", ROWS[:1]),
        ("", "test", ROWS[1:]),
        ("", None, ROWS + ROWS[:1] + ROWS[1:]),
        ("[validation]", "train", ROWS[:1]),
        ("/train", "val", ROWS),
    ],
)
def test_the_split_that_is_meant_is_read(saved_splits, suffix, split, rows):
    assert records(f"{saved_splits}{suffix}", split=split) == rows


def test_the_splits_that_are_left_out_are_listed(saved_splits):
    assert find_source(str(saved_splits), "train").summary() == (
        f"{saved_splits}: reading for data.train data-00000-of-00001.arrow;"
        " left out: validation/, test/"
    )


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("[", "damaged, not a JSON object; copy the folder again"),
        ({"_data_files": [{"filename": "../y.arrow"}]}, r"names '\.\./y\.arrow', which is not in"),
        (
            {"_data_files": [{"filename": "gone.arrow"}]},
            r"names 'gone\.arrow', which is not in this",
        ),
        ({"_data_files": [3]}, "names '', which is not in this folder"),
        ({"_data_files": [], "_indices_data_files": [{}]}, "saved with indices; save it again"),
    ],
)
def test_a_damaged_state_is_an_error(saved, state, message):
    (saved / "state.json").write_text(state if isinstance(state, str) else json.dumps(state))
    with pytest.raises(ValueError, match=message):
        find_source(str(saved))
