"""JSON rows: what the text says is the row, or the row is an error with its location."""

import json
import math

import pytest

from files_of_rows import ROWS, places, records
from peft_lightning.data.files import json_files
from peft_lightning.data.files.sources import find_source
from peft_lightning.data.records import RowError

HALF = r"half of a surrogate pair: \ud83d in "
PAIR = json.dumps("😀")  # the escapes of a whole pair

BAD_ROWS = [  # the text of a row, and how its error begins
    (b'{"a": 1', "invalid JSON: Expecting ',' delimiter at column 8"),
    (b'{"a": "\x00"}', "NUL bytes: the first is byte 8 of the line"),
    (b"[1]", "not an object: got list"),
    (b"[" * 100_000, "invalid JSON: nested too deeply"),
    (b'{"a": ' + b"9" * 5000 + b"}", "invalid JSON: Exceeds the limit"),
    (b'{"a": 1} {"a": 2}', "invalid JSON: Extra data at column 10"),
    (rb'{"a": "cut \ud83d"}', HALF + "a is not a character, such as a cut emoji; remove it"),
    (rb'{"a": {"b": ["x", "\ud83d."]}}', HALF + "a.b[1] is"),
    (rb'{"\ud83d": 1}', r"half of a surrogate pair: \ud83d is"),
    (rb'{"a": {"\ud83d": 1}}', HALF + "a is"),
    (rb'{"a": "\udc00\ud83d\ude00"}', r"half of a surrogate pair: \udc00 in a"),
    (rb'{"a": "\\ud83d\ude00"}', r"half of a surrogate pair: \ude00 in a"),
    (b'{"a": 1, "a": 2}', "a repeated key: 'a'; which value is meant is unclear, keep one"),
    (b'{"a" : 1, "a" :2}', "a repeated key: 'a'"),
    (b'{"a":1,"a" :2}', "a repeated key: 'a'"),
    (b'{"a":1,"a"\t:2}', "a repeated key: 'a'"),
    (b'{"a":1,"b":"\\":","a":2}', "a repeated key: 'a'"),
    (b'{"m": [{"role": "user", "role": "x"}, {}]}', "a repeated key: 'role' in m[0]"),
    (b'{"m": [{"k":1, "k":2}, "x"]}', "a repeated key: 'k' in m[0]"),
    (b'{"m": {"f": {"k": 1, "k": 1}}}', "a repeated key: 'k' in m.f"),
]
GOOD_ROWS = [
    '{"a": 1}',
    ' {"a" : "b" , "c" :  [1]} ',
    '{"a": "says \\": not a key", "b": {"a": {"a": [{"a": 1}]}}}',
    '{"a": ' + PAIR + "}",
    '{"a": "\\\\ud83d", "b": "\\ud55c\\uae00"}',
    '{"m": [{"role": "user"}, "x", {"role": "y"}], "t": [[{"role": 1}]]}',
    '{"a": "one\u2028line\u0085"}',
    "{}",
]


@pytest.mark.parametrize(("line", "reason"), BAD_ROWS)
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
    ("line", "reason"),
    [row for row in BAD_ROWS if row[1].startswith(("half", "a repeated", "not"))],
)
def test_a_row_of_an_array_has_the_same_errors(tmp_path, line, reason):
    path = tmp_path / "x.json"
    path.write_bytes(b'[{"a": 0}, ' + line + b', {"a": 2}]')
    (first, _), (bad, where), (last, _) = find_source(str(path)).records()
    assert (first, last) == ({"a": 0}, {"a": 2})
    assert isinstance(bad, RowError)
    assert where == f"{path}: item 2"
    assert str(bad).startswith(reason)


@pytest.mark.parametrize("text", GOOD_ROWS)
def test_a_row_is_what_json_says(tmp_path, text):
    path = tmp_path / "x.jsonl"
    path.write_text(text + "\n", encoding="utf-8")
    assert records(path) == [json.loads(text)]
    (tmp_path / "x.json").write_text(f"[{text}]", encoding="utf-8")
    assert records(tmp_path / "x.json") == [json.loads(text)]


def test_nan_and_infinity_are_numbers_as_python_writes_them(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": NaN, "b": -Infinity}\n')
    (row,) = records(tmp_path / "x.jsonl")
    assert math.isnan(row["a"])
    assert row["b"] == -math.inf


def test_a_null_that_a_row_says_stays(tmp_path):
    row = {"m": [{"arguments": {"n": None}}], "a": None}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    assert records(tmp_path / "x.jsonl") == [row]


TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
DOCUMENTS = [  # the content of a .json file, and its rows
    (ROWS, ROWS),
    ({"version": 1, "data": ROWS}, ROWS),
    ({"data": ROWS, "errors": []}, ROWS),
    (ROWS[0], ROWS[:1]),
    ({"messages": TURNS}, [{"messages": TURNS}]),
    ({"messages": TURNS, "tools": [{"type": "function"}]}, None),
    ({"conversations": [{"from": "human", "value": "q"}], "id": 3}, None),
    ({"train": ROWS, "test": ROWS[:1]}, ROWS + ROWS[:1]),
]


@pytest.mark.parametrize(("content", "rows"), DOCUMENTS)
def test_a_document_is_its_rows_or_one_row(tmp_path, content, rows):
    (tmp_path / "x.json").write_text(json.dumps(content, indent=1))
    assert records(tmp_path / "x.json") == ([content] if rows is None else rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": [{}], "b": [{}]}', r"keys \['a', 'b'\]; expected an array of rows"),
        ('{"data": [{"x": 1}], "data": [{"y": 1}]}', "the key 'data' occurs twice; keep one"),
        ('{"p": {"0": "a", "1": "b"}, "c": {"0": "d"}}', r"columns of a table.*orient=.records"),
        ('{"p": ["a", "b"], "c": ["d", "e"]}', "columns of a table, not rows"),
        ('{"a": 1}\n{\n"a": 2}', None),
        ('{\n"a": 1}\n{\n"a": 2}', r":3: invalid JSON, Extra data .*; write one object per line"),
        ("[" * 100_000, "invalid JSON, nested too deeply"),
        ("[" + "9" * 5000 + "]", "invalid JSON, Exceeds the limit"),
    ],
)
def test_a_document_without_plain_rows_says_what_to_write(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    if message is None:  # its first line is a row: it is read as JSONL
        assert records(tmp_path / "x.json")[0] == {"a": 1}
        return
    with pytest.raises(ValueError, match=message):
        records(tmp_path / "x.json")


def test_jsonl_under_the_name_json_is_read(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert records(path) == ROWS
    assert places(path) == [f"{path}:1", f"{path}:2"]


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_under_the_name_jsonl_is_read(tmp_path, indent):
    path = tmp_path / "x.jsonl"
    path.write_text("\n" + json.dumps(ROWS, indent=indent))
    assert records(path) == ROWS
    assert places(path) == [f"{path}: item 1", f"{path}: item 2"]


def test_a_damaged_array_under_the_name_jsonl_is_one_error(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('[\n{"a": 1},\noops]')
    with pytest.raises(ValueError, match=r"x\.jsonl:3: invalid JSON, Expecting value at column 1"):
        records(path)


def test_lines_that_are_arrays_are_errors_of_their_rows(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('[1]\n{"a": 1}\n')
    bad, good = records(path)
    assert bad.startswith("not an object: got list")
    assert good == {"a": 1}


def test_jsonl_is_read_line_by_line(tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n' * 10)
    parsed = []
    monkeypatch.setattr(json_files, "plain_row", lambda line, *_: parsed.append(line) or {"a": 1})
    next(find_source(str(path)).records())
    assert len(parsed) == 1


def test_errors_of_a_block_leave_its_other_rows_as_they_are(tmp_path):
    texts = [f'{{"a": {i}, "b": ": \\": "}}' for i in range(100)]
    texts[30], texts[60] = '{"a": 1, "a": 2}', "{no"
    (tmp_path / "x.jsonl").write_text("\n".join(texts))
    rows = records(tmp_path / "x.jsonl")
    assert [i for i, row in enumerate(rows) if isinstance(row, str)] == [30, 60]
    assert [row["a"] for row in rows if isinstance(row, dict)] == [
        i for i in range(100) if i not in (30, 60)
    ]


TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"a": [{"b": {}}]}}}]


@pytest.mark.parametrize("changes", [0, 1, 3, 30])
def test_a_repeated_key_is_found_also_in_a_column_that_rows_have_in_common(tmp_path, changes):
    rows = []
    for i in range(40):
        tools = json.loads(json.dumps(TOOLS))
        if changes and i % (40 // changes or 1) == 0:
            tools[0]["function"]["name"] = f"look{i}"
        rows.append({"tools": tools, "messages": [{"role": "user", "content": f"{i}"}]})
    texts = [json.dumps(row) for row in rows]
    texts[20] = texts[20].replace('"b": {}', '"b": {}, "b": {}')
    texts[30] = texts[30].replace('"role": "user"', '"role": "user", "role": "user"')
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(texts))
    found = []
    for row, _ in find_source(str(path)).records():
        found.append(row if isinstance(row, RowError) else json.loads(json.dumps(row)))
        if isinstance(row, dict):
            row["tools"].clear()  # as a function of the user may do
    assert [i for i, row in enumerate(found) if isinstance(row, RowError)] == [20, 30]
    assert "'b' in tools[0].function.parameters.a[0]" in str(found[20])
    assert [row for i, row in enumerate(found) if i not in (20, 30)] == [
        row for i, row in enumerate(rows) if i not in (20, 30)
    ]
