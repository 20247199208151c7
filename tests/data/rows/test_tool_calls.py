"""Tool calls and tools, in the forms in which data sets write them."""

import json

import pytest

from peft_lightning.data.records import Finding, RowError
from peft_lightning.data.rows.formats import FORMATS
from peft_lightning.data.rows.tool_calls import parse_tool_calls, parse_tools

USER = {"role": "user", "content": "q"}
CALLED = [{"type": "function", "function": {"name": "w", "arguments": {"c": 1}}}]
SCHEMA = {"name": "w", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": SCHEMA}]


def calls(value):
    return parse_tool_calls(value, [])


@pytest.mark.parametrize(
    "value",
    [
        CALLED,
        [{"function": {"name": "w", "arguments": {"c": 1}}}],
        [{"name": "w", "arguments": {"c": 1}}],
        {"name": "w", "arguments": {"c": 1}},
        [{"name": "w", "arguments": '{"c": 1}'}],
        [{"name": "w", "arguments": json.dumps('{"c": 1}')}],  # encoded twice
        [{"name": "w", "parameters": {"c": 1}}],
        [{"function": {"name": "w", "parameters": '{"c": 1}'}}],
        [{"name": "w", "arguments": {"c": 1}, "parameters": {"c": 1}}],
        [{"function": json.dumps({"name": "w", "arguments": {"c": 1}})}],
        json.dumps(CALLED),
        json.dumps({"name": "w", "arguments": {"c": 1}}),
        [json.dumps({"name": "w", "arguments": {"c": 1}})],
    ],
)
def test_a_call_is_read_in_every_form(value):
    assert calls(value) == CALLED


@pytest.mark.parametrize("arguments", ["", None, {}, "{}"])
def test_a_call_may_have_no_arguments(arguments):
    [call] = calls([{"name": "w", "arguments": arguments}])
    assert call["function"]["arguments"] == {}


def test_nulls_and_letters_of_arguments_stay():
    [call] = calls([{"id": "1", "function": {"name": "w", "arguments": {"é": None}}}])
    assert call == {
        "id": "1",
        "type": "function",
        "function": {"name": "w", "arguments": {"é": None}},
    }


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, r"tool calls are not a list: got int; write \[\{'name'"),
        ([5], "a tool call is not an object: got int; write"),
        ([{"id": 1}], r"a tool call without a name: it has \['id'\]; write"),
        ([{"function": 3}], "a tool call without a name"),
        ([{"name": "w", "arguments": "{"}], "tool call's arguments are not JSON"),
        ([{"name": "w", "arguments": "{'a': 1}"}], "looks like Python's repr"),
        ([{"name": "w", "arguments": "5"}], "arguments are not an object: those of w are int"),
        ([{"name": "w", "arguments": [1]}], "arguments are not an object: those of w are list"),
        ([{"name": "w", "arguments": {"a": 1}, "parameters": {"a": 2}}], "both arguments and para"),
        ("nonsense", "tool calls are not JSON"),
        ([{"name": "w", "arguments": '{"a": "\\ud83d"}'}], "half of a surrogate pair"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_malformed_call_is_an_error(value, message):
    with pytest.raises(RowError, match=message):
        calls(value)


def test_a_key_of_a_call_that_nothing_reads_is_a_finding():
    findings = []
    parse_tool_calls([{"name": "w", "input": {"c": 1}}], findings)
    assert findings == [Finding("unused key", "tool_calls.input")]


@pytest.mark.parametrize("content", [{}, {"content": None}])
def test_the_content_beside_tool_calls_is_none_and_not_missing(content):
    turn = {"role": "assistant", **content, "tool_calls": CALLED}
    row = FORMATS["messages"]({"messages": [USER, turn]})
    assert row.messages[1] == {"role": "assistant", "content": None, "tool_calls": CALLED}


def test_text_and_an_empty_list_beside_each_other_stay_text():
    turn = {"role": "assistant", "content": "a", "tool_calls": []}
    assert FORMATS["messages"]({"messages": [USER, turn]}).messages[1] == {
        "role": "assistant",
        "content": "a",
    }


def test_openais_older_form_is_read_as_tool_calls_and_tools():
    turns = [
        USER,
        {"role": "assistant", "content": None, "function_call": CALLED[0]["function"]},
        {"role": "function", "name": "w", "content": "1"},
        {"role": "assistant", "content": "a"},
    ]
    row = FORMATS["messages"]({"messages": turns, "functions": [SCHEMA]})
    assert row.messages[1] == {"role": "assistant", "content": None, "tool_calls": CALLED}
    assert row.messages[2] == {"role": "tool", "content": "1", "name": "w"}
    assert row.tools == TOOLS
    with pytest.raises(RowError, match="both tool_calls and function_call"):
        FORMATS["messages"]({"messages": [USER, {**turns[1], "tool_calls": CALLED}]})


@pytest.mark.parametrize(
    "value",
    [
        TOOLS,
        [{"function": SCHEMA}],
        [SCHEMA],
        [{"type": "function", **SCHEMA}],
        SCHEMA,
        json.dumps(TOOLS),
        json.dumps([SCHEMA]),
        [json.dumps(TOOLS[0])],
        [{"type": "function", "function": json.dumps(SCHEMA)}],
    ],
)
def test_tools_are_read_in_every_form(value):
    assert parse_tools(value) == TOOLS
    assert parse_tools(None, value) == TOOLS


@pytest.mark.parametrize("value", [None, "", "[]", [], {}])
def test_there_may_be_no_tools(value):
    assert parse_tools(value) is None


@pytest.mark.parametrize(
    ("tools", "functions", "message"),
    [
        (3, None, r"tools are not a list: got int; write \[\{"),
        ([3], None, "an entry of tools is not a tool with a name: got int; write"),
        ([{"type": "function"}], None, r"not a tool with a name: got \['type'\]"),
        ("x", None, "tools are not JSON"),
        (None, [{"parameters": {}}], "an entry of functions is not a tool with a name"),
        (TOOLS, [{"name": "other"}], "both tools and functions: and they differ; keep the tools"),
    ],
)
def test_malformed_tools_are_an_error(tools, functions, message):
    with pytest.raises(RowError, match=message):
        parse_tools(tools, functions)


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_messages_and_tools_may_be_json_text(column):
    turns = json.dumps([USER, {"role": "assistant", "content": "a"}])
    name = "messages" if column == "messages" else "sharegpt"
    row = FORMATS[name]({column: turns, "tools": json.dumps(TOOLS)})
    assert row.messages == [USER, {"role": "assistant", "content": "a"}]
    assert row.tools == TOOLS


@pytest.mark.parametrize("name", ["prompt_completion", "alpaca"])
def test_tools_go_along_with_a_single_turn(name):
    columns = {"prompt_completion": ("prompt", "completion"), "alpaca": ("instruction", "output")}
    record = dict.fromkeys(columns[name], "x") | {"tools": TOOLS}
    assert FORMATS[name](record).tools == TOOLS
