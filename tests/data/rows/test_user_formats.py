"""Formats of the user's own: what their functions may return, and the key of their cache."""

import sys

import pytest

from peft_lightning.data.options import RowOptions
from peft_lightning.data.records import RowError
from peft_lightning.data.rows.conversations import PlainText
from peft_lightning.data.rows.format_detection import resolve_format
from peft_lightning.data.rows.row_parser import RowParser
from peft_lightning.data.rows.user_formats import format_cache_key, load_user_format
from peft_lightning.messages import UserError

USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
RECORD = {"q": "hi", "a": "ho"}
SOURCE = """
from peft_lightning.data import Conversation, PlainText

def chat(record):
    return [{"role": "user", "content": record["q"]},
            {"role": "assistant", "content": record["a"]}]
def question(record): return [{"role": "user", "content": record["q"]}]
def pairs(record): return [(record["q"], False), (record["a"], True)]
def weighted(record): return [(record["q"], 0), (record["a"], 0.5)]
def text(record): return record["q"]
def columns(record): return {"prompt": record["q"], "completion": record["a"], "weight": 0.5}
def other(record): return {"question": record["q"], "answer": record["a"]}
def unknown(record): return {"x": 1}
def number(record): return 3
def negative(record): return [("a", -1.0)]
def plain(record): return PlainText([("a", 1.0)])
def conversation(record): return Conversation(chat(record))
def broken(record): return Conversation([{"content": "a"}])
"""


@pytest.fixture
def parser(tmp_path, monkeypatch):
    """Return a function that parses with a function of a module in the current folder."""
    (tmp_path / "my_formats.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_formats", raising=False)

    def make(name, **options):
        options = RowOptions(f"my_formats.{name}", **options)
        resolved, _ = resolve_format(iter([(RECORD, "x:1")]), options, "x")
        return RowParser(resolved, options)

    return make


@pytest.mark.parametrize("name", ["chat", "columns", "other", "conversation"])
def test_a_function_may_return_messages_columns_or_a_conversation(parser, name):
    row = parser(name).row(RECORD)
    assert row.messages == [USER, ASSISTANT]
    assert row.weight(1) == (0.5 if name == "columns" else 1)
    assert parser(name).prompt(RECORD).messages == [USER]
    assert parser(name, system_prompt="S").row(RECORD).messages[0]["content"] == "S"


def test_a_function_may_return_messages_without_an_answer_to_generate_from(parser):
    assert parser("question").prompt(RECORD).messages == [USER]


@pytest.mark.parametrize(
    ("name", "segments"),
    [
        ("pairs", [("hi", 0), ("ho", 1)]),
        ("weighted", [("hi", 0), ("ho", 0.5)]),
        ("text", [("hi", 1)]),
        ("plain", [("a", 1)]),
    ],
)
def test_a_function_may_return_text_or_pairs_of_text_and_weight(parser, name, segments):
    assert parser(name).row(RECORD) == PlainText(segments)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("chat", RowError, r"my_formats\.chat raised KeyError: 'q'"),
        ("number", UserError, r"'my_formats\.number' returned 3; expected text, a list"),
        (
            "unknown",
            UserError,
            r"the result of my_formats\.unknown: the columns \['x'\] fit no for",
        ),
        ("negative", RowError, "a flag of the loss has no meaning: weight: -1.0"),
        ("broken", RowError, "not a message: {'content': 'a'}; a Conversation holds"),
    ],
)
def test_a_function_that_fails_is_named(parser, name, error, message):
    with pytest.raises(error, match=message):
        parser(name).row({} if name == "chat" else RECORD)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_formats.chats", "no function 'chats' in my_formats; did you mean chat"),
        ("my_format.chat", "cannot import 'my_format'"),
        ("alpacca", r"no format 'alpacca'; there are .*; did you mean alpaca\?"),
    ],
)
@pytest.mark.usefixtures("parser")
def test_a_function_that_does_not_exist_is_an_error_with_the_nearest(name, message):
    with pytest.raises(UserError, match=message):
        load_user_format(name)


def test_columns_of_the_user_are_not_for_functions(parser):
    with pytest.raises(UserError, match=r"the function my_formats\.chat returns the columns its"):
        parser("chat", columns={"prompt": "q"})


HELPERS = {
    "plain_helper.py": "X = 1",
    "from_helper.py": "X = 1",
    "lazy_helper.py": "X = 1",
    "folder/inner.py": "import deeper_helper",
    "deeper_helper.py": "X = 1",
    "package/__init__.py": "from . import part",
    "package/part.py": "X = 1",
}


@pytest.mark.parametrize("changed", HELPERS)
def test_the_cache_key_changes_with_any_module_that_the_function_imports(
    changed, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "main_format.py").write_text(
        "import json\nimport numpy\nimport plain_helper\nfrom from_helper import X\n"
        "from folder import inner\nimport package\n"
        "def f(record):\n    import lazy_helper\n    return record\n"
    )
    for name, source in HELPERS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    modules = {name.removesuffix(".py").split("/")[0] for name in HELPERS} | {"main_format"}

    def key():
        for loaded in [m for m in sys.modules if m.split(".")[0] in modules]:
            monkeypatch.delitem(sys.modules, loaded)
        return format_cache_key("main_format.f")

    before = key()
    assert before == key()
    assert "numpy" in before
    assert len(before) < 5000  # not the source of numpy
    (tmp_path / changed).write_text(HELPERS[changed] + "\nY = 2")
    assert key() != before


def test_the_cache_key_of_a_known_format_is_its_name():
    assert format_cache_key("alpaca") == "alpaca"
