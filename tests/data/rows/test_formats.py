"""The formats with the columns that they need, and what is wrong with a row of them."""

import pytest

from peft_lightning.data.records import RowError
from peft_lightning.data.rows.conversations import Conversation, PlainText
from peft_lightning.data.rows.formats import FORMATS

USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}


def row(name, **record):
    return FORMATS[name](record)


def test_prompt_and_completion_are_a_turn_each_and_plain_text_without_a_template():
    result = row("prompt_completion", prompt="hi", completion="ho")
    assert result == Conversation([USER, ASSISTANT], plain=PlainText([("hi", 0), ("ho", 1)]))


def test_alpaca_with_and_without_input():
    bare = row("alpaca", instruction="Add.", output="3")
    assert bare.messages[0]["content"] == "Add."
    assert bare.plain.segments[0] == (
        "Below is an instruction that describes a task. Write a response that appropriately"
        " completes the request.\n\n### Instruction:\nAdd.\n\n### Response:\n",
        0,
    )
    given = row("alpaca", instruction="Add.", input="1 2", output="3")
    assert given.messages[0]["content"] == "Add.\n\n1 2"
    assert given.plain.segments == [
        (
            "Below is an instruction that describes a task, paired with an input that provides"
            " further context. Write a response that appropriately completes the request.\n\n"
            "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n",
            0,
        ),
        ("3", 1),
    ]
    assert row("alpaca", instruction="Add.", input="", output="3") == bare
    assert row("alpaca", instruction="Add.", input=None, output="3") == bare


def test_an_input_without_an_instruction_is_the_users_text():
    result = row("alpaca", instruction="", input="1 2", output="3")
    assert result.messages[0]["content"] == "1 2"


def test_messages_keep_their_order_and_lose_nulls():
    system = {"role": "system", "content": "s"}
    result = row("messages", messages=[{**system, "name": None}, USER, ASSISTANT])
    assert result == Conversation([system, USER, ASSISTANT])


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
    assert row("text", text="a b") == PlainText([("a b", 1)])


@pytest.mark.parametrize(
    ("name", "record", "reason"),
    [
        (
            "prompt_completion",
            {"prompt": "x"},
            r"no column 'completion': there are \['prompt'\]; `data.columns: \{completion: NAME\}`",
        ),
        ("prompt_completion", {"prompt": None, "completion": "x"}, "column 'prompt' is null"),
        ("prompt_completion", {"prompt": "x", "completion": " \n"}, "empty completion"),
        ("prompt_completion", {"prompt": "x", "completion": float("nan")}, "not text: it is nan"),
        (
            "prompt_completion",
            {"prompt": "x", "completion": {"a": 1}},
            "'completion' is not text: it is dict; write it as text, such as a string of JSON",
        ),
        ("prompt_completion", {"prompt": ["a", "b"], "completion": "x"}, "'prompt' is not text"),
        ("alpaca", {"instruction": "x", "output": ""}, "empty output"),
        ("alpaca", {"instruction": "x", "input": {}, "output": "y"}, "'input' is not text"),
        ("alpaca", {"instruction": "x", "output": "y", "system": 1.5e999}, "'system' is not text"),
        ("text", {"text": ""}, "empty text: write its text, or leave the row out"),
        ("text", {"text": 10**5000}, "a number too long to write"),
        ("messages", {"messages": []}, "messages are not a list of messages: got an empty one"),
        ("messages", {"messages": "hi"}, "messages are not JSON"),
        ("sharegpt", {"conversations": {}}, "messages are not a list of messages: got dict"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(name, record, reason):
    with pytest.raises(RowError, match=reason):
        FORMATS[name](record)


def test_a_record_is_left_as_it_is():
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call], "weight": 0.5}
    record = {"messages": [USER, turn], "tools": '[{"name": "f"}]'}
    before = repr(record)
    FORMATS["messages"](record)
    assert repr(record) == before
