"""What a path stands for: a file, the meant files of a folder or pattern, or an error."""

import json
import os

import pytest

from files_of_rows import ROWS, content_of, lines, records
from peft_lightning.data.files.sources import find_source
from peft_lightning.messages import UserError


@pytest.fixture
def tree(tmp_path):
    """Write files, each with its own name as its only row; return the folder's path."""

    def write(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"name": name}) + "\n")
        return str(tmp_path)

    return write


def names(path, split=None):
    return [record["name"] for record in records(path, split=split)]


SHARDS = [f"train-0000{i}-of-00002.jsonl" for i in range(2)]
FOLDERS = [  # the files, what they are for, and those that are read
    (["b.jsonl", "a.jsonl"], "train", ["a.jsonl", "b.jsonl"]),
    (["b.jsonl", "a.jsonl"], "val", ["a.jsonl", "b.jsonl"]),
    (["train.jsonl", "validation.jsonl", "test.jsonl"], "train", ["train.jsonl"]),
    (["train.jsonl", "validation.jsonl", "test.jsonl"], "val", ["validation.jsonl"]),
    (["train.jsonl", "validation.jsonl", "test.jsonl"], "test", ["test.jsonl"]),
    (["train.jsonl", "validation.jsonl", "test.jsonl"], "predict", ["test.jsonl"]),
    (["train.jsonl", "val.jsonl"], "predict", ["train.jsonl", "val.jsonl"]),
    (["train.jsonl", "test.jsonl"], None, ["test.jsonl", "train.jsonl"]),
    (["train.jsonl", "val.jsonl"], "val", ["val.jsonl"]),
    (["train.jsonl", "valid.jsonl"], "val", ["valid.jsonl"]),
    (["train.jsonl", "dev.jsonl"], "val", ["dev.jsonl"]),
    (["train.jsonl", "eval.jsonl"], "val", ["eval.jsonl"]),
    (["train.jsonl", "eval.jsonl"], "test", ["eval.jsonl"]),
    (["train.jsonl", "eval.jsonl", "dev.jsonl"], "val", ["dev.jsonl"]),
    ([*SHARDS, "test-00000-of-00001.jsonl"], "train", SHARDS),
    (["my_Train_v2.JSONL", "my_Test.jsonl"], "train", ["my_Train_v2.JSONL"]),
    (["TrainData.jsonl", "TestData.jsonl"], "test", ["TestData.jsonl"]),
    (
        ["train/b.jsonl", "train/a.jsonl", "test/a.jsonl"],
        "train",
        ["train/a.jsonl", "train/b.jsonl"],
    ),
    (["data/x/train/1.jsonl", "data/x/val/1.jsonl"], "val", ["data/x/val/1.jsonl"]),
    (["train/test_tasks.jsonl", "train/a.jsonl"], "train", ["train/a.jsonl"]),
    (["a.jsonl", "test.jsonl"], "train", ["a.jsonl"]),
    (["pretrain.jsonl", "contest.jsonl"], "train", ["contest.jsonl", "pretrain.jsonl"]),
    (["sub/a.jsonl", "b.jsonl", ".git/c.jsonl", ".d.jsonl"], "train", ["b.jsonl", "sub/a.jsonl"]),
]


@pytest.mark.parametrize(("files", "split", "expected"), FOLDERS)
def test_a_folder_is_its_files_that_are_meant(tree, files, split, expected):
    assert names(tree(*files), split) == expected


@pytest.mark.parametrize(
    ("files", "split", "message"),
    [
        (
            ["train.jsonl", "test.jsonl"],
            "val",
            r"no split for data\.val, only test, train; .* out a",
        ),
        (
            ["val.jsonl", "test.jsonl"],
            "train",
            r"data\.train, only .*; name the one to use as \S+\[t",
        ),
        (
            ["val.jsonl", "a.jsonl"],
            "test",
            r"data\.test, only validation; name .* \S+\[validation\]$",
        ),
        (["x.txt"], "train", r"no data file in this folder; they end in \.jsonl, .* \.zst behind"),
        ([".a.jsonl"], "train", "no data file in this folder"),
    ],
)
def test_a_folder_without_a_file_that_is_meant_is_an_error(tree, files, split, message):
    with pytest.raises(ValueError, match=message):
        find_source(tree(*files), split)


def test_a_single_file_is_read_whatever_its_name(tree):
    assert names(tree("test.jsonl") + "/test.jsonl", "train") == ["test.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "split", "expected"),
    [
        ("*.jsonl", "train", ["a.jsonl", "b.jsonl"]),
        ("[ab].jsonl", None, ["a.jsonl", "b.jsonl"]),
        ("?.json*", None, ["a.jsonl", "b.jsonl"]),
        ("**/*.jsonl", None, ["a.jsonl", "b.jsonl", "c/train.jsonl", "c/val.jsonl", "d/e.jsonl"]),
        ("**/*.jsonl", "val", ["c/val.jsonl"]),
        ("c/*", "train", ["c/train.jsonl"]),
        ("[cd]", None, ["c/train.jsonl", "c/val.jsonl", "d/e.jsonl"]),
        ("c[val]", "train", ["c/val.jsonl"]),
        ("[validation]", "train", ["c/val.jsonl"]),
    ],
)
def test_a_pattern_is_the_files_that_it_matches(tree, pattern, split, expected):
    folder = tree("a.jsonl", "b.jsonl", "c/train.jsonl", "c/val.jsonl", "d/e.jsonl")
    joined = "" if pattern == "[validation]" else "/"
    assert names(folder + joined + pattern, split) == expected


@pytest.mark.parametrize("split", ["train", ":100", "dev"])
def test_a_split_of_a_file_without_splits_is_an_error(tree, split):
    with pytest.raises(ValueError, match=r"a\.jsonl has no splits, leave .* out; data\.max_rows"):
        find_source(f"{tree('a.jsonl')}/a.jsonl[{split}]")


def test_a_pattern_that_matches_nothing_is_an_error(tree):
    with pytest.raises(ValueError, match=r"\*\.csv: no such file or folder"):
        find_source(tree("a.jsonl") + "/*.csv")


def test_a_split_that_is_named_and_not_there_is_an_error(tree):
    folder = tree("train.jsonl", "test.jsonl")
    with pytest.raises(ValueError, match=r"no file of the split 'dev'; there are test\.jsonl, tr"):
        find_source(f"{folder}[dev]")


def test_the_files_that_are_read_and_left_out_are_listed(tree):
    folder = tree(
        *SHARDS, "test.jsonl", "README.md", "train-x.jsonl", "train-y.jsonl", "train-z.csv"
    )
    assert find_source(folder, "train").summary() == (
        f"{folder}: reading for data.train 5 files (train-00000-of-00002.jsonl, ..., train-z.csv);"
        " left out: README.md, test.jsonl"
    )
    assert find_source(folder, "test").summary() == (
        f"{folder}: reading for data.test test.jsonl; left out: README.md,"
        " train-00000-of-00002.jsonl, train-00001-of-00002.jsonl, train-x.jsonl, train-y.jsonl and"
        " 1 more"
    )
    assert find_source(f"{folder}/test.jsonl", "train").summary() == ""


SIDE = {"license": "x", "features": {"a": 1}}


def test_files_beside_the_rows_are_left_out_and_listed(tree, tmp_path):
    folder = tree("a.jsonl", "notes.txt")
    for name in ("dataset_info.json", "about.json"):
        (tmp_path / name).write_text(json.dumps(SIDE))
    (tmp_path / "rows.json").write_text(json.dumps([{"name": "rows.json"}]))
    assert names(folder) == ["a.jsonl", "rows.json"]
    assert find_source(folder).left_out == ("about.json", "dataset_info.json", "notes.txt")


def test_a_folder_of_objects_has_one_row_in_each_file(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.json").write_text(json.dumps({"name": name}, indent=1))
    assert names(tmp_path) == ["a", "b"]


def test_links_are_followed_once(tree, tmp_path):
    folder = tree("data/a.jsonl", "other/b.jsonl")
    os.symlink(tmp_path / "other", tmp_path / "data" / "link")
    os.symlink(tmp_path / "data", tmp_path / "data" / "loop")
    os.symlink(tmp_path / "nowhere", tmp_path / "data" / "notes.txt")
    assert names(f"{folder}/data") == ["data/a.jsonl", "other/b.jsonl"]


@pytest.mark.parametrize("path", ["data", "data/broken.jsonl", "data/*.jsonl"])
def test_a_data_file_that_is_a_link_to_nowhere_is_named(tree, tmp_path, path):
    folder = tree("data/a.jsonl")
    os.symlink(tmp_path / "nowhere", tmp_path / "data" / "broken.jsonl")
    with pytest.raises(UserError, match=r"broken\.jsonl: a link to .*nowhere, which is not there"):
        find_source(f"{folder}/{path}")


@pytest.mark.parametrize(
    ("suffix", "split", "rows"),
    [
        ("", "train", ROWS),
        ("", "val", ROWS[:1]),
        ("", None, ROWS + ROWS[:1]),
        ("", "predict", ROWS + ROWS[:1]),
        ("[dev]", "train", ROWS[:1]),
    ],
)
def test_an_object_with_a_key_for_each_split_is_the_rows_of_the_one_meant(
    tmp_path, suffix, split, rows
):
    (tmp_path / "x.json").write_text(json.dumps({"train": ROWS, "dev": ROWS[:1], "version": 1}))
    assert records(f"{tmp_path}/x.json{suffix}", split=split) == rows


def test_the_key_that_is_read_is_said_and_in_the_fingerprint(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"train": ROWS, "dev": ROWS[:1]}))
    train, val = find_source(str(path), "train"), find_source(str(path), "val")
    assert train.summary() == f"{path}: reading for data.train the rows of 'train' in x.json"
    assert train.fingerprint() != val.fingerprint()
    with pytest.raises(ValueError, match=r"no split for data\.test, only train, dev; .*\[train\]$"):
        find_source(str(path), "test")
    with pytest.raises(ValueError, match=r"x\.json has no split 'test'; there are train, dev"):
        find_source(f"{path}[test]")


def test_a_missing_file_is_named_with_the_nearest_there_is(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(ValueError, match=r"trian\.jsonl: no such file .*mean .*/train\.jsonl\?"):
        find_source(str(tmp_path / "trian.jsonl"))
    with pytest.raises(ValueError, match=rf"no such file .*mean {tmp_path}"):
        find_source(f"{tmp_path}x/train.jsonl")
    with pytest.raises(ValueError, match=r"no such file or folder.*; a data set of the hub is own"):
        find_source(f"{tmp_path}/a/b/c")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("x" * 5000, "x: cannot be read: File name too long"),
        ("~nobody-of-this-name/x.jsonl", "Could not determine home directory"),
        ('{"prompt": "a row", "completion": "and no path"}', "no such file or folder"),
        ("", "no data file|no such file"),
    ],
)
def test_what_can_be_no_path_is_an_error(path, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        find_source(path)


def test_a_pipe_is_an_error(tmp_path):
    os.mkfifo(tmp_path / "x.jsonl")
    with pytest.raises(ValueError, match="a pipe or device; rows are read several times"):
        find_source(str(tmp_path / "x.jsonl"))


def test_the_fingerprint_is_the_contents_not_the_names(tmp_path):
    for name, text in [("a.jsonl", "{}"), ("b.jsonl", "{}"), ("c.jsonl", "{} ")]:
        (tmp_path / name).write_text(text)
    a, b, c = (find_source(str(tmp_path / f"{x}.jsonl")).fingerprint() for x in "abc")
    assert a == b != c


def test_the_kind_of_a_file_is_in_its_fingerprint(tmp_path):
    for name in ("a.csv", "a.tsv"):
        (tmp_path / name).write_text("a,b\tc\n1,2\t3\n")
    csv, tsv = (find_source(str(tmp_path / f"a.{x}")).fingerprint() for x in ("csv", "tsv"))
    assert csv != tsv


def test_a_purpose_that_is_no_option_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(content_of("a.jsonl"))
    assert lines(ROWS)
    with pytest.raises(ValueError, match="split must be train, val, test or predict, got 'dev'"):
        find_source(f"{tmp_path}/a.jsonl", "dev")
