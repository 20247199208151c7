"""Files of rows may hold anything: the outcome is rows, errors with their location, or one line."""

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from files_of_rows import COMPRESS, ROWS, arrow_bytes, content_of, parquet_bytes
from peft_lightning.data.files.json_rows import parse_row
from peft_lightning.data.files.sources import find_source
from peft_lightning.data.records import RowError
from peft_lightning.messages import UserError

pytestmark = pytest.mark.slow

# the same examples in every run: a failure is one of the commit's
bounded = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ESCAPES = [r"\ud83d", r"\ude00", r"\\", r"\"", r"\u003a", r"\n", '\\":', "\\", ":", " :", '": "']
TEXTS = ["", "a", "가", "😀", "\u2028", "prompt", "role", "test", "train", *ESCAPES]
strings = st.lists(st.sampled_from(TEXTS), max_size=4).map(lambda parts: f'"{"".join(parts)}"')
blanks = st.sampled_from(["", "", " ", "\t", "\n", "\r\n"])


def _object(pairs):
    return "{" + ",".join(f"{a}{key}{b}:{c}{value}" for a, key, b, c, value in pairs) + "}"


json_values = st.recursive(
    strings
    | st.sampled_from(["1", "null", "true", "NaN", "-Infinity", "1e999", "9" * 5000, "nul"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda values: "[" + ", ".join(values) + "]")
        | st.lists(st.tuples(blanks, strings, blanks, blanks, inner), max_size=4).map(_object)
    ),
    max_leaves=8,
)
WORDS = [b"{", b"}", b"[", b"]", b'"', b",", b";", b"\t", b":", b"\\", b"\n", b"\r", b"\0", b"\xff"]
WORDS += [b'{"a": 1}', b'{"a": 1}\n', b"a,b\n", b"a;b\n", b"sep=;\n", b"1,2\n", b'"x', b"\xb0\xa1"]
WORDS += [b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf", b"[" * 3000, b"9" * 5000, b"\x1f\x8b", b"PAR1"]
WORDS += [
    b"a\0b\0",
    b"\0a\0\n",
    "안녕하세요".encode("cp949"),
    "café".encode("cp1252"),
    "글".encode(),
]
words = st.lists(st.sampled_from(WORDS) | st.binary(max_size=4), max_size=12).map(b"".join)
TEXT_NAMES = ["x.jsonl", "x.json", "x.csv", "x.tsv"]


@st.composite
def mutated(draw, content):
    """Return ``content`` with some bytes replaced, cut out or put in, or its end cut off."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        content[place : place + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


def outcome(call):
    """Return what ``call`` returns, or its error, which is one for the user."""
    try:
        return call()
    except UserError as error:
        return error


def read(path, encoding=None):
    """Read a file; return its records, or the error of the whole file."""

    def records():
        source = find_source(str(path), "train", encoding)
        source.summary()
        source.estimated_num_rows()
        return list(source.records())

    found = outcome(records)
    if isinstance(found, UserError):
        assert 0 < len(str(found)) < 20_000
        assert str(path) in str(found)
        return found
    for record, where in found:
        assert re.fullmatch(r"(:\d+|: (\w+ )?item \d+|: row \d+)", where.removeprefix(str(path)))
        assert isinstance(record, dict | RowError)
        assert isinstance(record, dict) or 0 < len(str(record)) < 20_000
    return [record for record, _ in found]


@bounded
@given(content=words)
@pytest.mark.parametrize("encoding", [None, "utf-16", "cp949", "utf-8"])
@pytest.mark.parametrize("name", TEXT_NAMES)
def test_a_text_file_may_be_any_bytes(name, encoding, tmp_path, content):
    (tmp_path / name).write_bytes(content)
    read(tmp_path / name, encoding)


@bounded
@given(lines=st.lists(json_values, min_size=1, max_size=5))
def test_a_line_is_the_row_that_a_parser_of_each_key_finds_or_an_error(tmp_path, lines):
    lines = [re.sub(r"\s*\n\s*", " ", line) for line in lines]
    path = tmp_path / "x.jsonl"
    path.write_bytes("\n".join(["{}", *lines]).encode())
    found = read(path)
    assert isinstance(found, list)
    for line, record in zip(["{}", *lines], found, strict=True):
        expected = outcome(lambda line=line: parse_row(line.encode()))
        assert repr(record) == repr(expected)  # NaN is not equal to itself
        if isinstance(record, dict):
            json.dumps(record, ensure_ascii=False).encode()  # no half of a pair is left
            assert _num_keys(line) == _num_keys(json.dumps(record))


def _num_keys(text):
    """Count keys by a parser that is told of each."""
    found = []
    json.loads(text, object_pairs_hook=lambda pairs: found.extend(pairs) or dict(pairs))
    return len(found)


@bounded
@given(text=json_values)
@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_a_document_may_be_any_json(name, tmp_path, text):
    (tmp_path / name).write_bytes(text.encode())
    read(tmp_path / name)


@bounded
@given(data=st.data())
@pytest.mark.parametrize("name", [f"x.{k}{c}" for k in ("jsonl", "csv") for c in COMPRESS])
def test_a_compressed_file_may_be_any_bytes(name, tmp_path, data):
    (tmp_path / name).write_bytes(data.draw(mutated(content_of(name))))
    read(tmp_path / name)


NESTED = [
    {"m": [{"role": "user", "n": i}], "t": "가" * i, "b": b"\xff", "x": None} for i in range(9)
]


@bounded
@given(data=st.data())
@pytest.mark.parametrize("rows", [ROWS, NESTED], ids=["flat", "nested"])
@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream"])
def test_an_arrow_file_may_be_any_bytes(kind, rows, tmp_path, data):
    if kind == "parquet":
        content, name = parquet_bytes(rows), "x.parquet"
    else:
        content, name = arrow_bytes(rows, stream=kind == "stream"), "x.arrow"
    (tmp_path / name).write_bytes(data.draw(mutated(content)))
    read(tmp_path / name)


@bounded
@given(text=st.text(max_size=30) | st.lists(st.sampled_from(list("a/:@[]+%x.* -")), max_size=20))
def test_a_path_may_be_any_text(text, tmp_path):
    text = "".join(text).replace("\0", "")
    path = f"{tmp_path}/{text.replace('/', '_')}"[:200]
    found = outcome(lambda: find_source(path, "train"))
    assert isinstance(found, UserError)
    assert 0 < len(str(found)) < 2000
