"""CSV and TSV files: every field as it is written, and every malformed row by its line."""

import pytest

from files_of_rows import places, records
from peft_lightning.data.files.sources import find_source
from peft_lightning.data.records import RowError


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"1", "wrong number of columns: 1, the header has 2"),
        (b"1,2,3", "wrong number of columns: 3, the header has 2"),
        (b"\xff,2", "invalid UTF-8"),
        (b'"a"b,2', "invalid CSV: "),
        (b"a\x00,2", "NUL bytes"),
    ],
)
def test_a_malformed_row_is_named_with_its_reason(tmp_path, row, reason):
    path = tmp_path / "x.csv"
    path.write_bytes(b"a,b\n" + row + b"\n3,4\n")
    (bad, where), (good, _) = find_source(str(path)).records()
    assert isinstance(bad, RowError)
    assert str(bad).startswith(reason)
    assert where == f"{path}:2"
    assert good == {"a": "3", "b": "4"}


def test_a_column_that_occurs_twice_is_an_error(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,a\n1,2\n")
    with pytest.raises(ValueError, match=r"x\.csv:1: duplicate column name: \['a', 'a'\]"):
        records(path)


QUOTES = "with quotes as text"
TEXT = f"x.tsv as separated {QUOTES}"


@pytest.mark.parametrize(
    ("name", "text", "row", "said"),
    [
        ("x.csv", "a,b\n1;2,3\n", {"a": "1;2", "b": "3"}, ""),
        ("x.csv", "a\tb\n1,5\t2\n", {"a": "1,5", "b": "2"}, "x.csv as separated by tabs"),
        ("x.csv", "a;b\n1,5;2\n", {"a": "1,5", "b": "2"}, "x.csv as separated by semicolons"),
        ("x.csv", '"a,b"\tc\n1\t2\n', {"a,b": "1", "c": "2"}, "x.csv as separated by tabs"),
        ("x.csv", "a,b;c\n1,2\n", {"a": "1", "b;c": "2"}, ""),
        ("x.csv", "a\n1;2\n", {"a": "1;2"}, ""),
        ("x.csv", "\n\na;b\n1;2\n", {"a": "1", "b": "2"}, "x.csv as separated by semicolons"),
        ("x.csv", "sep=;\na;b\n1;2\n", {"a": "1", "b": "2"}, "x.csv as separated by semicolons"),
        ("x.csv", "sep=|\r\na|b\r\n1|2\r\n", {"a": "1", "b": "2"}, "x.csv as separated by '|'"),
        ("x.tsv", "a\tb,c\n1\t2\n", {"a": "1", "b,c": "2"}, ""),
        ("x.tsv", "a,b\n1,2\n", {"a": "1", "b": "2"}, "x.tsv as separated by commas"),
        ("x.tsv", 'a\tb\n"x"\t"y\tz"\n', {"a": "x", "b": "y\tz"}, ""),
        ("x.tsv", 'a\tb\n"x" y\tz\n', {"a": '"x" y', "b": "z"}, TEXT),
        ("x.tsv", 'a\tb\n"x\tz\n', {"a": '"x', "b": "z"}, TEXT),
        ("x.csv", 'a\tb\n"x\tz\n', {"a": '"x', "b": "z"}, "x.csv as separated by tabs " + QUOTES),
        ("x.csv", "a, b\n1, 2\n", {"a": "1", "b": " 2"}, ""),
        ("x.csv", "a,b\r\nnull,007\r\n", {"a": "null", "b": "007"}, ""),
        ("x.csv", "a,b\r1.0,NA\r", {"a": "1.0", "b": "NA"}, ""),
        ("x.csv", 'a,b\n"say ""hi""",\n', {"a": 'say "hi"', "b": ""}, ""),
    ],
)
def test_the_header_tells_the_separator_and_fields_are_as_written(tmp_path, name, text, row, said):
    (tmp_path / name).write_bytes(text.encode())
    source = find_source(str(tmp_path / name))
    assert [record for record, _ in source.records()] == [row]
    assert source.summary() == (f"{source.name}: reading {said}" if said else "")


def test_a_row_is_located_by_its_line_in_the_file(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('sep=;\na;b\n"1\n2";3\n\n4;5\n')
    assert places(path) == [f"{path}:4", f"{path}:6"]


def test_a_field_may_be_longer_than_pythons_limit(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,b\n" + "x" * 200_000 + ",2\n")
    assert len(records(path)[0]["a"]) == 200_000
