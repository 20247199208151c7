import pytest

from peft_lightning.data.conversations import Conversation, PlainText
from peft_lightning.data.format_detection import detect_format
from peft_lightning.data.formats import FORMATS, find_format
from peft_lightning.data.prompts import prompt_from_record
from peft_lightning.data.records import RowError

USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}


def row(name, **record):
    return FORMATS[name](record)


def test_prompt_and_completion_are_a_turn_each_and_plain_text_without_a_template():
    result = row("prompt_completion", prompt="hi", completion="ho")
    assert result.messages == [USER, ASSISTANT]
    assert result.plain == PlainText([("hi", False), ("ho", True)])


def test_prompt_and_completion_may_be_lists_of_messages_of_which_the_completion_trains():
    lists = row("prompt_completion", prompt=[USER, ASSISTANT, USER], completion=[ASSISTANT])
    assert lists.messages == [USER, ASSISTANT, USER, ASSISTANT]
    assert lists.untrained == {1}
    assert row("prompt_completion", prompt=[USER], completion="ho").messages == [USER, ASSISTANT]
    assert row("prompt_completion", prompt="hi", completion=[ASSISTANT]).messages[0] == USER


def test_alpaca_with_and_without_input():
    bare = row("alpaca", instruction="Add.", output="3")
    assert bare.messages[0]["content"] == "Add."
    assert bare.plain.segments[0] == (
        "Below is an instruction that describes a task. Write a response that appropriately"
        " completes the request.\n\n### Instruction:\nAdd.\n\n### Response:\n",
        False,
    )
    given = row("alpaca", instruction="Add.", input="1 2", output="3")
    assert given.messages[0]["content"] == "Add.\n\n1 2"
    assert given.plain.segments == [
        (
            "Below is an instruction that describes a task, paired with an input that provides"
            " further context. Write a response that appropriately completes the request.\n\n"
            "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n",
            False,
        ),
        ("3", True),
    ]
    assert row("alpaca", instruction="Add.", input="", output="3") == bare
    assert row("alpaca", instruction="Add.", input=None, output="3") == bare


def test_messages_keep_their_order_and_lose_nulls():
    system = {"role": "system", "content": "s"}
    result = row("messages", messages=[{**system, "name": None}, USER, ASSISTANT])
    assert result == Conversation([system, USER, ASSISTANT])


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    assert row("messages", messages=[{"role": "user", "content": parts}, ASSISTANT]).messages == [
        USER,
        ASSISTANT,
    ]


def test_tool_calls_get_their_arguments_parsed_and_tools_go_along():
    call = {"type": "function", "id": "1", "function": {"name": "f", "arguments": '{"x": 1}'}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    tools = [{"type": "function", "function": {"name": "f"}}]
    result = row("messages", messages=[USER, turn], tools=tools)
    assert result.messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert result.tools == tools
    assert call["function"]["arguments"] == '{"x": 1}'  # the record is left alone
    as_text = row("messages", messages=[USER, turn], tools='[{"type": "function"}]')
    assert as_text.tools == [{"type": "function"}]


def test_a_message_of_weight_zero_is_not_trained_on():
    turns = [USER, {**ASSISTANT, "weight": 0}, USER, {**ASSISTANT, "weight": 1}]
    result = row("messages", messages=turns)
    assert result.untrained == {1}
    assert result.messages == [USER, ASSISTANT, USER, ASSISTANT]


def test_sharegpt_roles_become_openai_ones():
    turns = [
        {"from": "human", "value": "hi"},
        {"from": "gpt", "value": "ho"},
        {"from": "tool", "value": "t"},
        {"from": "gpt", "value": "ho"},
    ]
    result = row("sharegpt", conversations=turns, system="s")
    roles = [m["role"] for m in result.messages]
    assert roles == ["system", "user", "assistant", "tool", "assistant"]
    assert result.messages[2] == ASSISTANT


def test_text_trains_whole():
    assert row("text", text="a b") == PlainText([("a b", True)])


@pytest.mark.parametrize(
    ("name", "record", "reason"),
    [
        ("prompt_completion", {"prompt": "x"}, r"no column 'completion': there are \['prompt'\]"),
        ("prompt_completion", {"prompt": None, "completion": "x"}, "column 'prompt' is null"),
        ("prompt_completion", {"prompt": "x", "completion": " \n"}, "empty completion"),
        ("prompt_completion", {"prompt": "x", "completion": 3}, "'completion' is not text: .* int"),
        (
            "prompt_completion",
            {"prompt": "x", "completion": {"a": 1}},
            "'completion' is not text: it is dict; write it as a string of JSON",
        ),
        ("prompt_completion", {"prompt": 3, "completion": "x"}, "'prompt' is not text: it is int"),
        ("alpaca", {"instruction": "x", "output": ""}, "empty output"),
        ("alpaca", {"instruction": "x", "input": 1, "output": "y"}, "'input' is not text"),
        ("text", {"text": ""}, "empty text"),
        ("messages", {"messages": []}, "messages are not a list of messages: got empty"),
        ("messages", {"messages": "hi"}, "messages are not a list of messages: got str"),
        ("messages", {"messages": ["hi"]}, "a message is not an object: got str"),
        ("messages", {"messages": [{"content": "x"}]}, "a message without a role"),
        (
            "messages",
            {"messages": [{"role": "bot", "content": "x"}]},
            "unknown role: 'bot'; 'role'",
        ),
        ("messages", {"messages": [USER]}, "no assistant turn"),
        ("messages", {"messages": [USER, ASSISTANT, USER]}, "last message not from the assistant"),
        ("messages", {"messages": [USER, {"role": "assistant"}]}, "a message without content"),
        ("messages", {"messages": [USER, {**ASSISTANT, "content": ""}]}, "empty assistant turn"),
        ("messages", {"messages": [{**USER, "content": 3}, ASSISTANT]}, "'content' is not text"),
        (
            "messages",
            {"messages": [{**USER, "content": [{"type": "image_url"}]}, ASSISTANT]},
            "a part of a message is not text: it is 'image_url'",
        ),
        (
            "messages",
            {"messages": [USER, {**ASSISTANT, "weight": 0.5}]},
            "a message's weight is neither 0 nor 1",
        ),
        (
            "messages",
            {"messages": [USER, {**ASSISTANT, "tool_calls": [{"id": 1}]}]},
            "a tool call without a name",
        ),
        (
            "messages",
            {"messages": [USER, {**ASSISTANT, "tool_calls": [{"name": "f", "arguments": "{"}]}]},
            "tool call's arguments are not JSON",
        ),
        ("sharegpt", {"conversations": [{"from": "x", "value": "y"}]}, "unknown role: 'x'; 'from'"),
        ("sharegpt", {"conversations": [{"value": "y"}]}, "a turn without 'from' and 'value'"),
        ("sharegpt", {"conversations": "x"}, "column 'conversations' is not a list of objects"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(name, record, reason):
    with pytest.raises(RowError, match=reason):
        FORMATS[name](record)


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        (["prompt", "completion", "id"], "prompt_completion"),
        (["instruction", "output"], "alpaca"),
        (["instruction", "input", "output"], "alpaca"),
        (["prompt", "prompt_id", "messages"], "messages"),
        (["id", "conversations"], "sharegpt"),
        (["text", "meta"], "text"),
    ],
)
def test_a_format_is_told_from_the_columns(columns, name):
    assert detect_format(columns, "x.jsonl") == name


def test_columns_that_fit_no_format_or_several_are_an_error():
    with pytest.raises(
        ValueError,
        match=r"x\.jsonl: the columns \['q', 'a'\] fit no format.*alpaca needs instruction and out",
    ):
        detect_format(["q", "a"], "x.jsonl")
    with pytest.raises(ValueError, match=r"fit several formats \(messages, text\)"):
        detect_format(["text", "messages"], "x.jsonl")


def test_an_unknown_format_names_the_nearest():
    with pytest.raises(
        ValueError, match=r"no format 'alpacca'; there are .*; did you mean alpaca\?"
    ):
        find_format("alpacca")


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """A module of the user's in the current folder, which is not on ``sys.path``."""
    (tmp_path / "my_formats.py").write_text(
        "def chat(record):\n"
        "    return [{'role': 'user', 'content': record['q']},\n"
        "            {'role': 'assistant', 'content': record['a']}]\n"
        "def pairs(record):\n    return [(record['q'], False), (record['a'], True)]\n"
        "def text(record):\n    return record['q']\n"
        "def number(record):\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("user_module")
def test_a_users_function_may_return_messages_pairs_or_text():
    record = {"q": "hi", "a": "ho"}
    assert find_format("my_formats.chat")(record).messages == [USER, ASSISTANT]
    assert find_format("my_formats.pairs")(record) == PlainText([("hi", False), ("ho", True)])
    assert find_format("my_formats.text")(record) == PlainText([("hi", True)])


@pytest.mark.usefixtures("user_module")
def test_a_users_function_that_fails_is_named():
    with pytest.raises(RowError, match=r"my_formats\.chat raised KeyError: 'q'"):
        find_format("my_formats.chat")({})
    with pytest.raises(ValueError, match=r"'my_formats\.number' returned 3; expected text, a list"):
        find_format("my_formats.number")({})
    with pytest.raises(ValueError, match=r"no function 'chats' in my_formats; did you mean chat"):
        find_format("my_formats.chats")
    with pytest.raises(ValueError, match="cannot import 'my_format'"):
        find_format("my_format.chat")


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("prompt_completion", {"prompt": "hi"}),
        ("prompt_completion", {"prompt": "hi", "completion": "ho"}),
        ("prompt_completion", {"prompt": [USER]}),
        ("alpaca", {"instruction": "hi"}),
        ("messages", {"messages": [USER]}),
        ("messages", {"messages": [USER, ASSISTANT]}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "hi"}]}),
    ],
)
def test_a_prompt_is_the_row_without_its_answer(name, record):
    assert prompt_from_record(record, name).messages == [USER]


def test_a_prompt_of_plain_text_is_what_is_not_trained_on():
    assert prompt_from_record({"text": "hi"}, "text") == PlainText([("hi", True)])
    plain = prompt_from_record({"prompt": "hi"}, "prompt_completion").plain
    assert plain == PlainText([("hi", False)])
