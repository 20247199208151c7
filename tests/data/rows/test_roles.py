"""Names of roles, and the two pairs of keys that turns have."""

import pytest

from peft_lightning.data.options import RowOptions
from peft_lightning.data.records import RowError
from peft_lightning.data.rows.format_detection import detect_format
from peft_lightning.data.rows.formats import FORMATS
from peft_lightning.data.rows.roles import parse_role, roles_with
from peft_lightning.data.rows.row_parser import RowParser
from peft_lightning.messages import UserError

CALL = '{"name": "f", "arguments": {"x": 1}}'
CALLED = [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("system", "system"),
        ("developer", "system"),  # OpenAI
        ("user", "user"),
        ("human", "user"),  # ShareGPT
        ("Human", "user"),
        ("prompter", "user"),  # OpenAssistant
        ("assistant", "assistant"),
        ("ASSISTANT", "assistant"),
        ("gpt", "assistant"),  # ShareGPT
        ("chatgpt", "assistant"),
        ("model", "assistant"),  # Gemma
        ("bot", "assistant"),
        ("tool", "tool"),
        ("function", "tool"),  # OpenAI's older form
        ("observation", "tool"),  # LLaMA-Factory
        ("ipython", "tool"),  # Llama 3
        ("function_response", "tool"),
        ("tool_response", "tool"),  # ms-swift
        (" user ", "user"),
    ],
)
@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value"), ("role", "value")])
@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_a_role_has_the_names_that_data_sets_give_it(column, keys, name, role):
    by, says = keys
    turns = [{by: name, says: "t"}, {by: "assistant", says: "a"}]
    row = FORMATS["messages" if column == "messages" else "sharegpt"]({column: turns})
    assert row.messages[0] == {"role": role, "content": "t"}


@pytest.mark.parametrize("name", ["function_call", "tool_call"])  # LLaMA-Factory, ms-swift
@pytest.mark.parametrize("value", [CALL, f"[{CALL}]", {"name": "f", "arguments": {"x": 1}}])
def test_a_turn_of_calls_becomes_the_assistants_tool_calls(name, value):
    turns = [
        {"from": "human", "value": "q"},
        {"from": name, "value": value},
        {"from": "observation", "value": "1"},
        {"from": "gpt", "value": "a"},
    ]
    called, answered = FORMATS["sharegpt"]({"conversations": turns}).messages[1:3]
    assert called == {"role": "assistant", "content": None, "tool_calls": CALLED}
    assert answered == {"role": "tool", "content": "1"}


def test_calls_that_follow_each_other_or_the_assistants_text_are_one_message():
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "let me see"},
        {"role": "tool_call", "content": CALL},
        {"role": "tool_call", "content": CALL},
        {"role": "tool_response", "content": "1"},
        {"role": "assistant", "content": "a"},
    ]
    messages = FORMATS["messages"]({"messages": turns}).messages
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant"]
    assert messages[1]["content"] == "let me see"
    assert messages[1]["tool_calls"] == CALLED * 2
    turns[2]["weight"] = 0
    with pytest.raises(RowError, match="tool calls of one turn have different flags of the loss"):
        FORMATS["messages"]({"messages": turns})


def test_a_user_may_name_roles():
    record = {"messages": [{"role": "client", "content": "q"}, {"role": "agent", "content": "a"}]}
    options = RowOptions(roles={"Client": "human", "agent": "assistant"})
    parser = RowParser(detect_format(record, "x", options), options)
    assert [message["role"] for message in parser.row(record).messages] == ["user", "assistant"]
    assert [message["role"] for message in parser.prompt(record).messages] == ["user"]


def test_an_unknown_role_is_an_error_that_says_how_to_name_it():
    remedy = r"known are system, .*; `data\.roles: \{agent: assistant\}` says what it means"
    with pytest.raises(RowError, match=rf"unknown role: 'agent'.*{remedy}"):
        parse_role("agent")
    with pytest.raises(RowError, match=r"unknown role: 'asistant'; did you mean assistant\? known"):
        parse_role("asistant")
    with pytest.raises(RowError, match=r"unknown role: \['user'\]"):
        parse_role(["user"])
    with pytest.raises(UserError, match=r"data\.roles: 'x' cannot mean 'assist'.*did you mean ass"):
        roles_with({"x": "assist"})


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"content": "x"}, r"a message without a role: it has \['content'\]; write"),
        ({"role": None, "content": "x"}, "a message without a role"),
        ({"role": "user", "from": "gpt", "content": "x"}, "a message with two roles"),
        ({"role": "user", "content": "x", "value": "y"}, "both content and value.*keep one"),
        (
            {"role": "user"},
            r"a message without content: it has \['role'\]; write its text as 'cont",
        ),
        ({"role": "gpt", "text": "a"}, r"without content: it has \['role', 'text'\]; write its"),
        ("hi", "a message is not an object: got str; write"),
        ({"role": "user", "content": "q", "tool_calls": CALLED}, "only the assistant calls tools"),
        ({"role": "tool_call", "content": "[]"}, "a turn of tool calls without one"),
        ({"role": "tool_call", "content": "hello"}, "tool calls are not JSON"),
    ],
)
def test_a_malformed_turn_is_an_error_that_says_what_to_write(turn, message):
    with pytest.raises(RowError, match=message):
        FORMATS["messages"]({"messages": [turn, {"role": "assistant", "content": "a"}]})


def test_the_same_role_or_text_under_both_keys_is_read_once():
    turn = {"role": "user", "from": "human", "content": "x", "value": "x"}
    row = FORMATS["messages"]({"messages": [turn, {"role": "assistant", "content": "a"}]})
    assert row.messages[0] == {"role": "user", "content": "x"}
