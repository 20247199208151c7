"""Parquet and Arrow files: plain values, and no nulls that Arrow has put into objects."""

import datetime
import decimal
import uuid

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from files_of_rows import arrow_bytes, parquet_bytes, records

WRITE = {"x.parquet": parquet_bytes, "x.arrow": arrow_bytes}
CALLS = [{"function": {"name": "w", "arguments": {"city": "Oslo"}}}]
ROWS = [
    {"m": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": CALLS}], "n": 1},
    {
        "m": [
            {"role": "assistant", "tool_calls": [{"function": {"arguments": {"n": [None, 1]}}}]},
            {"role": "tool", "content": "c"},
        ],
        "n": None,
    },
]


@pytest.fixture(params=WRITE)
def write(request, tmp_path):
    """Write rows or a table as Parquet and as Arrow; return the path."""

    def to_file(rows):
        (tmp_path / request.param).write_bytes(WRITE[request.param](rows))
        return tmp_path / request.param

    return to_file


def test_objects_have_the_keys_that_their_rows_have(write):
    assert records(write(ROWS)) == ROWS


def test_a_column_that_is_null_stays(write):
    rows = [{"a": None, "b": {"c": 1}}, {"a": "x", "b": None}]
    assert records(write(rows)) == rows


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (datetime.date(2024, 1, 5), pyarrow.date32(), "2024-01-05"),
        (datetime.datetime(2024, 1, 5, 10), pyarrow.timestamp("s"), "2024-01-05 10:00:00"),
        (datetime.datetime(2024, 1, 5, 10), pyarrow.timestamp("ns"), "2024-01-05 10:00:00"),
        (datetime.time(10, 30), pyarrow.time64("us"), "10:30:00"),
        (datetime.timedelta(hours=1), pyarrow.duration("s"), "1:00:00"),
        (decimal.Decimal("1.50"), pyarrow.decimal128(5, 2), "1.50"),
        ("글".encode(), pyarrow.binary(), "글"),
        (b"\xff\xfe", pyarrow.large_binary(), b"\xff\xfe"),
        (b"ab", pyarrow.binary(2), "ab"),
        ([("k", None), ("l", 1)], pyarrow.map_(pyarrow.string(), pyarrow.int8()), None),
        ("x", pyarrow.dictionary(pyarrow.int8(), pyarrow.string()), "x"),
        ("x", pyarrow.large_string(), "x"),
        ("x", pyarrow.string_view(), "x"),
        ([1, 2], pyarrow.list_(pyarrow.int8(), 2), [1, 2]),
        ([datetime.date(2024, 1, 5), None], pyarrow.large_list(pyarrow.date32()), None),
        (0.5, pyarrow.float16(), 0.5),
        (True, pyarrow.bool_(), True),
        (None, pyarrow.null(), None),
        ({"d": datetime.date(2024, 1, 5), "n": None}, None, {"d": "2024-01-05"}),
    ],
)
def test_a_value_of_every_type_is_plain(tmp_path, value, kind, expected):
    table = pyarrow.table({"a": pyarrow.array([value], kind)})
    (tmp_path / "x.arrow").write_bytes(arrow_bytes(table))
    if expected is None and value is not None:
        expected = {"k": None, "l": 1} if isinstance(value[0], tuple) else ["2024-01-05", None]
    assert records(tmp_path / "x.arrow") == [{"a": expected}]


def test_extension_types_are_what_they_stand_for(tmp_path):
    number = uuid.UUID(int=7)
    table = pyarrow.table(
        {
            "json": pyarrow.array(['{"a": null}', "{no"], pyarrow.json_()),
            "id": pyarrow.array([number.bytes, None], pyarrow.uuid()),
            "flag": pyarrow.array([1, 0], pyarrow.bool8()),
        }
    )
    (tmp_path / "x.arrow").write_bytes(arrow_bytes(table))
    assert records(tmp_path / "x.arrow") == [
        {"json": {"a": None}, "id": str(number), "flag": True},
        {"json": "{no", "id": None, "flag": False},
    ]


def test_json_features_of_datasets_are_what_they_were(write):
    rows = [{"a": [{"b": None}, {"c": 1}]}, {"a": [{"b": "x"}]}]
    dataset = datasets.Dataset.from_list(rows, on_mixed_types="use_json")
    assert records(write(dataset.data.table)) == rows


def test_invalid_utf8_is_an_error_of_its_row(tmp_path):
    text = pyarrow.array([b"a", b"\xff", b"c"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"a": text}), tmp_path / "x.parquet")
    assert records(tmp_path / "x.parquet") == [{"a": "a"}, "invalid UTF-8", {"a": "c"}]


def test_a_column_that_occurs_twice_is_an_error(write):
    table = pyarrow.Table.from_arrays([pyarrow.array([1])] * 2, ["a", "a"])
    with pytest.raises(ValueError, match=r"duplicate column name: \['a', 'a'\]"):
        records(write(table))


def test_rows_are_read_in_parts(tmp_path):
    rows = [{"a": i} for i in range(2500)]
    (tmp_path / "x.arrow").write_bytes(arrow_bytes(rows))
    assert records(tmp_path / "x.arrow") == rows


def test_a_damaged_file_names_the_row_that_was_reached(tmp_path):
    table = pyarrow.table({"a": [str(i) for i in range(5000)]})
    with pyarrow.OSFile(str(tmp_path / "x.arrow"), "wb") as sink:
        with pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=1000)
        size = sink.tell()
    content = (tmp_path / "x.arrow").read_bytes()
    (tmp_path / "x.arrow").write_bytes(content[: size // 2])
    with pytest.raises(ValueError, match=r"x\.arrow: damaged after row 2000, "):
        records(tmp_path / "x.arrow")


def test_bytes_that_are_no_text_stay_bytes(tmp_path):
    table = pyarrow.table({"a": ["x"], "image": [{"bytes": b"\x89PNG", "path": None}]})
    (tmp_path / "x.arrow").write_bytes(arrow_bytes(table))
    assert records(tmp_path / "x.arrow") == [{"a": "x", "image": {"bytes": b"\x89PNG"}}]
