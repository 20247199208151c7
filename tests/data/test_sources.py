import csv
import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from peft_lightning.data import readers
from peft_lightning.data.records import RowError
from peft_lightning.data.sources import find_source

ROWS = [{"prompt": "안녕", "completion": "a\nb"}, {"prompt": "2", "completion": "c, d"}]


def records(path):
    return [record for record, _ in find_source(str(path)).records()]


def places(path):
    return [where for _, where in find_source(str(path)).records()]


@pytest.fixture
def folder(tmp_path):
    """One file of each kind, with the same rows."""
    (tmp_path / "a.jsonl").write_text("\n\n".join(json.dumps(row) for row in ROWS))
    (tmp_path / "b.json").write_text(json.dumps(ROWS, indent=1))
    with (tmp_path / "c.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(ROWS)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "d.parquet")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jsonl", ["a.jsonl:1", "a.jsonl:3"]),
        ("b.json", ["b.json: item 1", "b.json: item 2"]),
        ("c.csv", ["c.csv:3", "c.csv:4"]),  # the first row spans lines 2 and 3
        ("d.parquet", ["d.parquet: row 1", "d.parquet: row 2"]),
    ],
)
def test_every_kind_of_file_gives_the_same_rows_and_says_where_they_stand(folder, name, expected):
    assert records(folder / name) == ROWS
    assert places(folder / name) == [f"{folder}/{place}" for place in expected]


def test_a_folder_is_all_its_data_files_by_name(folder):
    (folder / "README.md").write_text("not data")
    (folder / ".hidden.jsonl").write_text("not data")
    assert records(folder) == ROWS * 4


def test_a_folder_without_data_files_says_so(tmp_path):
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(
        ValueError, match=r"no data file in this folder; .*\.jsonl, .* or \.parquet"
    ):
        find_source(str(tmp_path))


def test_an_object_with_one_array_is_that_array(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"version": 1, "data": ROWS}))
    assert records(path) == ROWS
    path.write_text(json.dumps({"train": ROWS, "test": ROWS}))
    with pytest.raises(ValueError, match=r"keys \['train', 'test'\]; expected an array of rows"):
        records(path)


def test_jsonl_under_the_name_json_is_read(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert records(path) == ROWS


def test_a_byte_order_mark_is_not_part_of_the_first_row(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS[0]).encode())
    assert records(path) == ROWS[:1]
    table = tmp_path / "x.csv"
    table.write_bytes(b"\xef\xbb\xbfprompt\n1\n")
    assert records(table) == [{"prompt": "1"}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": 1', "invalid JSON: Expecting ',' delimiter at column 8"),
        (b'{"a": "\xff"}', "invalid UTF-8: byte 8 of the line"),
        (b'{"a": "\x00"}', "NUL bytes: the first is byte 8 of the line"),
        (b"[1]", "not an object: got list"),
        (b"[" * 100_000, "invalid JSON: nested too deeply"),
    ],
)
def test_a_malformed_line_is_named_with_its_reason_and_the_next_is_read(tmp_path, line, reason):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 0}\n' + line + b'\n{"a": 2}\n')
    rows = list(find_source(str(path)).records())
    bad, where = rows[1]
    assert isinstance(bad, RowError)
    assert where == f"{path}:2"
    assert str(bad).startswith(reason)
    assert rows[2] == ({"a": 2}, f"{path}:3")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"1", "wrong number of columns: 1, the header has 2"),
        (b"1,2,3", "wrong number of columns: 3, the header has 2"),
        (b"\xff,2", "invalid UTF-8"),
        (b'"a"b,2', "invalid CSV: "),
    ],
)
def test_a_malformed_csv_row_is_named_with_its_reason(tmp_path, row, reason):
    path = tmp_path / "x.csv"
    path.write_bytes(b"a,b\n" + row + b"\n3,4\n")
    (bad, where), (good, _) = find_source(str(path)).records()
    assert str(bad).startswith(reason)
    assert where == f"{path}:2"
    assert good == {"a": "3", "b": "4"}


def test_a_column_that_occurs_twice_is_an_error(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,a\n1,2\n")
    with pytest.raises(ValueError, match=r"x\.csv:1: duplicate column name: \['a', 'a'\]"):
        records(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", "", "no rows"),
        ("x.jsonl", "\n\n", "no rows"),
        ("x.json", "", "no rows"),
        ("x.json", "[]", "no rows"),
        ("x.csv", "a,b\n", "no rows"),
        ("x.json", '[{"a": 1},\n oops]', r"x\.json:2: invalid JSON, Expecting value at column 2"),
        ("x.json", '"text"', "expected an array of rows, got str"),
        ("x.parquet", "text", "not a Parquet file"),
    ],
)
def test_an_empty_or_unreadable_file_is_an_error(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        records(path)


def test_a_missing_file_is_named_with_the_nearest_there_is(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(ValueError, match=r"trian\.jsonl: no such file .*mean .*/train\.jsonl\?"):
        find_source(str(tmp_path / "trian.jsonl"))
    with pytest.raises(ValueError, match=rf"no such file .*mean {tmp_path}"):
        find_source(f"{tmp_path}x/train.jsonl")


def test_an_unknown_kind_of_file_is_named(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b"{}"))
    with pytest.raises(ValueError, match=r"unknown kind of file '\.gz'"):
        find_source(str(path))


def test_a_name_of_the_hub_is_tried_after_the_local_path(monkeypatch):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return ROWS

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert records("owner/name:part[test]") == ROWS
    assert places("owner/name") == ["owner/name: row 1", "owner/name: row 2"]
    assert set(asked) == {("owner/name", "part", "test"), ("owner/name", None, "train")}


def test_both_tries_are_named_if_neither_works(monkeypatch):
    def load_dataset(name, config, split):
        raise ConnectionError("no network\nlong story")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(
        ValueError,
        match=r"owner/name: no such file or folder; nor .* the hub \(ConnectionError: no network\)",
    ):
        find_source("owner/name")


def test_jsonl_is_read_line_by_line(tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n' * 10)
    parsed = []
    monkeypatch.setattr(readers, "_parse_line", lambda line: parsed.append(line) or {"a": 1})
    rows = find_source(str(path)).records()
    next(rows)
    assert len(parsed) == 1


def test_the_fingerprint_is_the_contents_not_the_names(tmp_path):
    for name, text in [("a.jsonl", "{}"), ("b.jsonl", "{}"), ("c.jsonl", "{} ")]:
        (tmp_path / name).write_text(text)
    a, b, c = (find_source(str(tmp_path / f"{x}.jsonl")).fingerprint() for x in "abc")
    assert a == b != c
