"""Text in other encodings: said by name with what to write, and read when that is written."""

# ruff: noqa: RUF001  (the marks that people write)

import codecs
import json

import pytest

from files_of_rows import COMPRESS, records
from peft_lightning.data.files.encodings import check_encoding, guess_encoding
from peft_lightning.data.files.sources import find_source

TEXTS = {  # what people write, and the encodings in which they do
    "안녕하세요, 오늘 날씨가 참 좋네요. 어디로 갈까요?": ["cp949", "utf-16"],
    "일상 대화를 위한 챗봇 데이터입니다. 3박4일 놀러가고 싶다": ["cp949", "utf-16-le", "utf-32"],
    "今日はとても良い天気ですね。どこへ行きましょうか。カメラを持って": ["cp932", "euc_jp"],
    "今天天气很好，我们去公园散步吧。你觉得怎么样？": ["gb18030", "utf-16-be"],
    "今天天氣很好，我們去公園散步吧。你覺得怎麼樣？": ["big5", "utf-32-be"],
    "Сегодня хорошая погода, пойдём гулять в парк.": ["windows-1251", "koi8-r"],
    "Où est la bibliothèque ? C’est à côté, “près” de l’école.": ["windows-1252"],
    "Größe und Übermaß – schön für 5 €": ["windows-1252", "utf-16"],
    "Ägypten": ["windows-1252"],
}
CASES = [(text, name) for text, names in TEXTS.items() for name in names]


def jsonl(text):
    return json.dumps({"prompt": "q", "completion": text}, ensure_ascii=False) + "\n"


def csv(text):
    return f'prompt,completion\nq,"{text}"\n'


def document(text):
    return f"[{jsonl(text)}]"


WRITE = {"jsonl": jsonl, "csv": csv, "json": document}


@pytest.mark.parametrize(("text", "name"), CASES)
@pytest.mark.parametrize("kind", WRITE)
def test_the_encoding_of_a_file_is_named_with_the_option_that_reads_it(tmp_path, kind, text, name):
    path = tmp_path / f"x.{kind}"
    path.write_bytes(WRITE[kind](text).encode(name))
    with pytest.raises(ValueError, match=r"set data\.encoding: ([\w-]+)$") as error:
        records(path)
    assert "on_bad_row" not in str(error.value)
    said = str(error.value).rpartition(" ")[2]
    assert codecs.lookup(said).name == codecs.lookup(name).name
    assert records(path, encoding=said) == [{"prompt": "q", "completion": text}]
    assert records(path, encoding=name) == [{"prompt": "q", "completion": text}]


def test_the_message_shows_how_the_text_would_be_read(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(csv("안녕하세요").encode("cp949"))
    with pytest.raises(ValueError, match=r"not UTF-8; it looks like cp949 \('.*안녕하세요'\): set"):
        records(path)


def test_a_header_line_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes("질문,대답\nq,a\n".encode("cp949"))
    with pytest.raises(ValueError, match=r"x\.csv: not UTF-8; it looks like cp949 \('질문"):
        records(path)
    assert records(path, encoding="cp949") == [{"질문": "q", "대답": "a"}]


@pytest.mark.parametrize("name", ["utf-16", "cp949"])
def test_a_compressed_file_may_be_in_another_encoding(tmp_path, name):
    path = tmp_path / "x.csv.zst"
    path.write_bytes(COMPRESS[".zst"](csv("안녕\n하세요").encode(name)))
    assert records(path, encoding=name) == [{"prompt": "q", "completion": "안녕\n하세요"}]


def test_few_bad_rows_of_a_utf8_file_are_errors_of_these_rows(tmp_path):
    path = tmp_path / "x.jsonl"
    good = [jsonl("안녕하세요").encode() for _ in range(20)]
    path.write_bytes(b"".join([*good, b'{"a": "\xc0\xaf"}\n', *good]))
    rows = records(path)
    assert rows[20] == "invalid UTF-8: byte 8 of the line"
    assert sum(isinstance(row, dict) for row in rows) == 40


def test_a_bad_row_of_an_ascii_file_says_what_it_looks_like(tmp_path):
    path = tmp_path / "x.jsonl"
    plain = jsonl("plain").encode() * 20
    path.write_bytes(plain + jsonl("café").encode("windows-1252") + plain)
    rows = records(path)
    assert rows[20].startswith("invalid UTF-8: byte 35 of the line; it looks like windows-1252 ")
    assert rows[20].endswith("('café'): set data.encoding: windows-1252")
    assert len(rows) == 41


def test_a_bad_row_behind_a_megabyte_of_ascii_says_what_it_looks_like(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(jsonl("p" * 1000).encode() * 1100 + jsonl("날씨가 좋네요").encode("cp949"))
    assert records(path)[-1].endswith("('날씨가 좋네요'): set data.encoding: cp949")


def test_an_ascii_file_with_rows_of_another_encoding_further_on_is_an_error(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(jsonl("plain").encode() * 100 + jsonl("naïve café").encode("cp1252") * 9)
    with pytest.raises(ValueError, match=r"not UTF-8; .* set data\.encoding: windows-1252"):
        records(path)


@pytest.mark.parametrize("mark", [codecs.BOM_UTF8, b""])
@pytest.mark.parametrize("encoding", [None, "utf-8", "UTF8", "utf-8-sig"])
def test_a_byte_order_mark_of_utf8_is_no_part_of_the_first_row(tmp_path, encoding, mark):
    for kind, write in WRITE.items():
        path = tmp_path / f"x.{kind}"
        path.write_bytes(mark + write("가").encode())
        assert records(path, encoding=encoding) == [{"prompt": "q", "completion": "가"}]


@pytest.mark.parametrize("name", ["utf-16", "utf-32", "utf-8-sig"])
def test_a_byte_order_mark_says_more_than_the_option(tmp_path, name):
    path = tmp_path / "x.jsonl"
    path.write_bytes(jsonl("가").encode(name))
    assert records(path, encoding="cp949") == [{"prompt": "q", "completion": "가"}]


def test_a_utf8_file_that_is_said_to_be_in_another_encoding_is_an_error(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(jsonl("안녕하세요").encode())
    with pytest.raises(ValueError, match=r"is in UTF-8, not in cp949; leave data\.encoding out"):
        records(path, encoding="cp949")


def test_bytes_that_the_named_encoding_does_not_have_are_an_error_of_their_row(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(jsonl("안녕하세요").encode("cp949") * 5 + b'{"a": "\xff\xff"}\n{"a": 1}\n')
    rows = records(path, encoding="cp949")
    assert rows[5].startswith("invalid cp949: byte 8 of the line")
    assert rows[6] == {"a": 1}


def test_a_utf16_file_cut_in_the_middle_names_the_row_that_was_reached(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes((jsonl("안녕") * 3).encode("utf-16")[:-1])
    with pytest.raises(ValueError, match=r"damaged after line 2 \('utf-16(-le)?' codec"):
        records(path, encoding="utf-16")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cp9499", "did you mean cp949"),
        ("windows-1253x", "did you mean windows-125"),
        ("koreann", "did you mean korean"),
        ("zzzzzz", "write utf-16, cp949, cp932, gb18030 or windows-1252"),
        ("hex", "is no encoding of text"),
        ("rot13", "is no encoding of text"),
    ],
)
def test_an_unknown_encoding_is_named_with_the_nearest(tmp_path, name, hint):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"data\.encoding '.*' is no encoding of text") as error:
        find_source(str(path), encoding=name)
    assert hint in str(error.value)


@pytest.mark.parametrize(
    "name", ["utf-8", "UTF_16", "cp949", "Shift-JIS", "latin-1", "windows-1252"]
)
def test_every_name_of_python_is_known(name):
    assert check_encoding(name) == codecs.lookup(name).name


@pytest.mark.parametrize(
    "sample",
    [
        "한글 텍스트".encode(),
        "한글 텍스트".encode()[:-1],
        b"plain ASCII",
        b"",
        b"a\0b",
        bytes(range(256)) * 8,
        b"\0" * 4096,
    ],
)
def test_utf8_and_bytes_like_no_text_are_no_other_encoding(sample):
    assert guess_encoding(sample) is None


def test_an_error_says_what_to_do_where_no_encoding_is_likely(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b"a\n" + bytes(range(0x81, 0xA0)) + b"\n")
    with pytest.raises(ValueError, match=r"not UTF-8; set data\.encoding to the encoding that it"):
        records(path)
