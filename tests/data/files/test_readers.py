"""Every kind of file gives the same rows, and a damaged one says how far it was read."""

import gzip
import itertools

import pytest

from files_of_rows import COMPRESS, ROWS, arrow_bytes, content_of, places, records
from peft_lightning.data.files.data_files import KINDS
from peft_lightning.data.files.readers import estimated_num_rows
from peft_lightning.data.files.sources import find_source

PLACES = {
    "jsonl": ["x:1", "x:3"],
    "json": ["x: item 1", "x: item 2"],
    "csv": ["x:3", "x:4"],  # the first row spans lines 2 and 3
    "tsv": ["x:3", "x:4"],
    "parquet": ["x: row 1", "x: row 2"],
    "arrow": ["x: row 1", "x: row 2"],
}
NAMES = [f"x{suffix}" for suffix in KINDS]
NAMES += [
    f"x{suffix}{compressed}"
    for suffix, compressed in itertools.product([".jsonl", ".json", ".csv", ".tsv"], COMPRESS)
]
NAMES += ["x.JSONL", "X.Csv.GZ", "x.v2.jsonl", "x.zstd.jsonl"]


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_file_gives_the_same_rows_and_says_where_they_are(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(content_of(name))
    assert records(path) == ROWS
    kind = find_source(str(path)).files[0].kind
    assert places(path) == [str(path) + place[1:] for place in PLACES[kind]]


def test_an_arrow_file_may_be_a_stream(tmp_path):
    path = tmp_path / "x.arrow"
    path.write_bytes(arrow_bytes(ROWS, stream=True))
    assert records(path) == ROWS


def test_gzip_files_may_be_several_one_after_the_other(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n') + gzip.compress(b'{"a": 2}\n'))
    assert records(path) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("compressed", COMPRESS)
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_compressed_file_cut_in_the_middle_names_the_row_that_was_reached(
    tmp_path, kind, compressed
):
    path = tmp_path / f"x.{kind}{compressed}"
    rows = [f'{{"prompt": "{i * 7919**3}"}}\n' for i in range(40_000)]
    text = "".join(rows) if kind == "jsonl" else "prompt\n" + "".join(f"{r!r}\n" for r in rows)
    content = COMPRESS[compressed](text.encode())
    path.write_bytes(content[: len(content) * 9 // 10])
    read = []
    with pytest.raises(ValueError, match=r"damaged") as error:
        read.extend(find_source(str(path)).records())
    if compressed != ".bz2":  # its blocks are larger than this file
        assert f": damaged after line {read[-1][1].rpartition(':')[2]} (" in str(error.value)
        assert str(error.value).endswith("; copy it or download it again")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("compressed", COMPRESS)
def test_a_file_that_is_not_compressed_as_its_name_says_is_named(tmp_path, compressed):
    path = tmp_path / f"x.jsonl{compressed}"
    path.write_bytes(content_of("x.jsonl"))
    with pytest.raises(ValueError, match=r"no \w+ file, .* or name it x\.jsonl if it is not"):
        records(path)


@pytest.mark.parametrize("compressed", COMPRESS)
def test_a_file_whose_name_hides_its_compression_is_named(tmp_path, compressed):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content_of(f"x.jsonl{compressed}"))
    with pytest.raises(ValueError, match=rf"its content is \w+; name it x\.jsonl\{compressed}"):
        records(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.zip", r"\.zip files are not read; unpack it"),
        ("x.jsonl.tar.gz", r"\.tar\.gz files are not read; unpack it"),
        ("x.xlsx", r"save the sheet as CSV"),
        ("x.txt", r"write JSONL instead"),
        ("x.pkl", r"write its rows as JSONL or Parquet"),
        ("x.parquet.gz", r"\.parquet files are compressed inside, not as a whole; decompress it"),
        ("x.foo", r"unknown kind of file '\.foo'; use \.jsonl, .* also with \.gz or \.zst"),
        ("x", r"unknown kind of file ''; use"),
    ],
)
def test_a_kind_of_file_that_is_not_read_is_named_with_what_to_do(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        find_source(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", "", "no rows"),
        ("x.jsonl", "\n\n", "no rows"),
        ("x.json", "", "no rows"),
        ("x.json", "[]", "no rows"),
        ("x.json", '{"data": []}', "no rows"),
        ("x.csv", "", "no rows"),
        ("x.csv", "a,b\n", "no rows"),
        ("x.jsonl.gz", "", "no rows"),
        ("x.json", '[{"a": 1},\n oops]', r"x\.json:2: invalid JSON, Expecting value at column 2"),
        ("x.json", '"text"', "expected an array of rows, got str"),
        ("x.json", "{}", "an empty object; expected an array of rows"),
        ("x.parquet", "text", "not a Parquet file"),
        ("x.arrow", "text", "not an Arrow file"),
        ("x.feather", "FEA1 of long ago", r"Feather of version 1, write it again"),
    ],
)
def test_an_empty_or_unreadable_file_is_an_error(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        records(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("x.jsonl", 2), ("x.csv", 4), ("x.parquet", 2), ("x.arrow", 2), ("x.json", None)],
)
def test_the_number_of_rows_is_estimated_where_that_is_cheap(tmp_path, name, expected):
    path = tmp_path / name
    path.write_bytes(content_of(name))
    assert estimated_num_rows(find_source(str(path)).files[0]) == expected


def test_a_line_of_a_compressed_file_that_never_ends_is_an_error_of_one_row(tmp_path, monkeypatch):
    for module in ("text_files", "json_rows"):
        monkeypatch.setattr(f"peft_lightning.data.files.{module}.MAX_ROW_SIZE", 100)
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' + b"0" * 1000 + b'\n{"a": 2}\n'))
    first, second, third = find_source(str(path)).records()
    assert str(second[0]).startswith("a line that is too long")
    assert (first[0], third[0]) == ({"a": 1}, {"a": 2})
    assert third[1] == f"{path}:3"
