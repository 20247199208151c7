"""Turns to conversations: thoughts, parts, ends, prefills and system messages."""

import json

import pytest

from peft_lightning.data.options import RowOptions
from peft_lightning.data.records import Finding, RowError
from peft_lightning.data.rows.conversations import PlainText
from peft_lightning.data.rows.format_detection import detect_format
from peft_lightning.data.rows.row_parser import RowParser

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "S"}


def parse(record, **options):
    options = RowOptions(**options)
    return RowParser(detect_format(record, "x.jsonl", options), options).row(record)


def prompt(record, **options):
    options = RowOptions(**options)
    return RowParser(detect_format(record, "x.jsonl", options, True), options).prompt(record)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_is_kept_under_one_name(key):
    row = parse({"messages": [USER, {**ASSISTANT, key: "because"}]})
    assert row.messages[1] == {**ASSISTANT, "reasoning_content": "because"}
    assert row.findings == ()
    same = {**ASSISTANT, key: "because", "reasoning_content": "because"}
    assert parse({"messages": [USER, same]}).messages == row.messages


def test_a_thought_may_be_a_part_or_all_of_a_turn():
    parts = [{"type": "thinking", "thinking": "because"}, {"type": "text", "text": "a"}]
    row = parse({"messages": [USER, {"role": "assistant", "content": parts}]})
    assert row.messages[1] == {**ASSISTANT, "reasoning_content": "because"}
    alone = parse({"messages": [USER, {"role": "assistant", "reasoning": "because"}]})
    assert alone.messages[1] == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "because",
    }


def test_a_column_may_hold_the_thought_of_a_completion():
    row = parse({"prompt": "q", "completion": "a", "reasoning_content": "because"})
    assert row.messages[1] == {**ASSISTANT, "reasoning_content": "because"}
    assert row.plain is None


def test_a_thought_in_the_content_and_beside_it_is_read_once():
    inline = {"role": "assistant", "content": "<think>\nbecause\n</think>\n\na"}
    assert parse({"messages": [USER, {**inline, "reasoning": "because"}]}).messages[1] == inline
    with pytest.raises(RowError, match="two thoughts: <think> and another one; keep one"):
        parse({"messages": [USER, {**inline, "reasoning": "otherwise"}]})


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({**ASSISTANT, "reasoning": "x", "thinking": "y"}, "two thoughts: reasoning and thinking"),
        ({**ASSISTANT, "reasoning": 3}, "'reasoning' is not text: it is int"),
        ({**ASSISTANT, "content": ""}, "empty assistant turn: write its text, or weight: 0"),
        ({**ASSISTANT, "content": " \n"}, "empty assistant turn"),
        ({"role": "assistant"}, "empty assistant turn"),
        ({**ASSISTANT, "content": {"a": 1}}, "'content' is not text: it is dict"),
        ({**ASSISTANT, "content": [{"type": "image"}]}, "it is 'image'; only text can be trained"),
        ({**ASSISTANT, "content": [{"type": "text"}]}, "a part of a message without text"),
        ({**ASSISTANT, "content": [{"type": "text", "text": 3}]}, "without text: its text is int"),
        ({**ASSISTANT, "content": [3]}, "a part of a message is not text: it is 'int'"),
        ({**ASSISTANT, "content": [None]}, "a part of a message is not text"),
    ],
)
def test_a_malformed_answer_is_an_error(turn, message):
    with pytest.raises(RowError, match=message):
        parse({"messages": [USER, turn]})


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "q1"}, {"type": "text", "text": "q2"}],
        [{"type": "text", "content": "q1"}, {"text": "q2"}],  # torchtune
        ["q1", {"type": "input_text", "text": "q2"}],  # OpenAI's Responses
        [{"type": "text", "text": "q1q2", "image": None}, {"type": "text", "text": ""}],
    ],
)
def test_parts_of_text_are_joined(content):
    row = parse({"messages": [{"role": "user", "content": content}, ASSISTANT]})
    assert row.messages[0]["content"] == "q1q2"
    assert row.parts == {}


@pytest.mark.parametrize("last", [USER, {"role": "tool", "content": "1"}, SYSTEM])
def test_what_follows_the_last_answer_is_left_out_and_told(last):
    row = parse({"messages": [USER, ASSISTANT, last]})
    assert row.messages == [USER, ASSISTANT]
    assert row.findings == (Finding("turns after the last answer left out"),)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([USER], "no assistant turn: the roles are user; add the answer, or name its role in data"),
        ([], "messages are not a list of messages: got an empty one; write"),
        ("", "got NoneType; write"),
        (3, "got int; write"),
        ("[3", "messages are not JSON: .* at column 3"),
    ],
)
def test_messages_without_an_answer_are_an_error(messages, message):
    with pytest.raises(RowError, match=message):
        parse({"messages": messages})


@pytest.mark.parametrize("content", ["", " ", None])
def test_an_empty_turn_may_be_there_if_it_is_not_in_the_loss(content):
    empty = {"role": "assistant", "content": content, "weight": 0}
    row = parse({"messages": [USER, empty, USER, ASSISTANT]})
    assert row.weights == [0, 0, 0, 1]
    assert row.messages[1] == {"role": "assistant", "content": content or ""}
    masked = {"messages": [USER, {**empty, "weight": None}, USER, ASSISTANT]}
    assert parse({**masked, "loss_mask": [0, 0, 0, 1]}).weights == [0, 0, 0, 1]


# TRL: prompts and completions of messages; only the completion is in the loss


def test_only_the_messages_of_the_completion_are_in_the_loss():
    tool = {"role": "tool", "content": "1"}
    row = parse({"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT, tool, ASSISTANT]})
    assert row.messages == [USER, ASSISTANT, USER, ASSISTANT, tool, ASSISTANT]
    assert row.weights == [0, 0, 0, 1, 0, 1]
    assert parse({"prompt": [USER], "completion": "a"}).messages == [USER, ASSISTANT]
    assert parse({"prompt": "q", "completion": [ASSISTANT]}).messages == [USER, ASSISTANT]
    assert parse({"prompt": USER, "completion": ASSISTANT}).messages == [USER, ASSISTANT]
    weighted = parse({"prompt": [USER], "completion": [{**ASSISTANT, "weight": 0.5}]})
    assert weighted.weights == [0, 0.5]


def test_a_flag_in_a_prompt_has_no_effect_and_is_told():
    row = parse({"prompt": [USER, {**ASSISTANT, "train": True}, USER], "completion": "a"})
    assert row.weights == [0, 0, 0, 1]
    assert row.findings == (Finding("flag on a turn of the prompt"),)


def test_a_completion_continues_the_assistants_message_at_the_end_of_its_prompt():
    start = {"role": "assistant", "content": "The answer is"}
    row = parse({"prompt": [USER, start], "completion": " 3."})
    assert row.messages == [USER, {"role": "assistant", "content": "The answer is 3."}]
    assert row.parts == {1: [("The answer is", 0), (" 3.", 1)]}
    assert row.weight(1) == 1
    half = parse({"prompt": [USER, start], "completion": " 3.", "weight": 0.5})
    assert half.parts == {1: [("The answer is", 0), (" 3.", 0.5)]}
    parts = [{"type": "text", "text": " b", "train": False}, {"type": "text", "text": "c"}]
    flagged = parse({"prompt": [USER, start], "completion": [{**ASSISTANT, "content": parts}]})
    assert flagged.parts == {1: [("The answer is", 0), (" b", 0), ("c", 1)]}
    asked = prompt({"prompt": [USER, start]})
    assert asked.messages == [USER, start]
    assert asked.parts == {}


def test_a_call_at_the_end_of_a_prompt_is_not_continued():
    call = {"role": "assistant", "tool_calls": [{"name": "f"}]}
    row = parse({"prompt": [USER, call], "completion": "a"})
    assert [m["content"] for m in row.messages] == ["q", None, "a"]
    assert row.weights == [0, 0, 1]


# system messages


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [USER, ASSISTANT]},
        {"conversations": [USER, ASSISTANT]},
        {"prompt": "q", "completion": "a"},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"instruction": "q", "output": "a"},
        {"question": "q", "answer": "a"},
    ],
)
def test_a_system_message_may_be_a_column_or_an_option(record):
    for row in (
        parse({**record, "system": "S"}),
        parse({**record, "system_prompt": "S"}),
        parse({**record, "system": [{"type": "text", "text": "S"}]}),
        parse(record, system_prompt="S"),
        parse({**record, "system": "S"}, system_prompt="other"),
    ):
        assert row.messages == [SYSTEM, USER, ASSISTANT]
        assert row.findings == ()
        assert [row.weight(i) for i in range(3)] == [0, 0, 1]
    assert parse({**record, "system": ""}).messages == [USER, ASSISTANT]


def test_a_system_column_beside_a_system_turn_is_read_once_or_an_error():
    record = {"conversations": [SYSTEM, USER, ASSISTANT]}
    assert parse({**record, "system": "S"}).messages == [SYSTEM, USER, ASSISTANT]
    with pytest.raises(RowError, match=r"two system messages: the column 'system' and .* keep one"):
        parse({**record, "system": "T"})
    assert parse({"messages": [SYSTEM, USER, SYSTEM, USER, ASSISTANT]}).messages[2] == SYSTEM


def test_a_system_message_moves_the_parts_along():
    content = [{"type": "text", "text": "a", "train": False}, {"type": "text", "text": "b"}]
    record = {"messages": [USER, {"role": "assistant", "content": content}], "system": "S"}
    assert parse(record).parts == {2: [("a", 0), ("b", 1)]}


def test_a_system_prompt_for_plain_text_is_an_error():
    with pytest.raises(RowError, match=r"this row is no conversation; leave data\.system_prompt"):
        parse({"text": "t"}, system_prompt="S")


# LLaMA-Factory: "responses in the history will also be learned"


@pytest.mark.parametrize("history", [[["h1", "h2"]], '[["h1", "h2"]]'])
def test_the_history_comes_before_and_its_answers_are_in_the_loss(history):
    row = parse({"instruction": "i", "input": "", "output": "o", "system": "S", "history": history})
    assert [m["content"] for m in row.messages] == ["S", "h1", "h2", "i", "o"]
    assert [row.weight(i) for i in range(5)] == [0, 0, 1, 0, 1]
    assert row.findings == ()
    asked = prompt({"query": "i", "history": history})
    assert [m["content"] for m in asked.messages] == ["h1", "h2", "i"]


def test_an_empty_history_is_none_and_a_malformed_one_an_error():
    assert parse({"instruction": "i", "output": "o", "history": []}).plain is not None
    with pytest.raises(
        RowError, match=r"history is not a list of pairs: \['h'\]; write \[\[prompt"
    ):
        parse({"instruction": "i", "output": "o", "history": [["h"]]})
    with pytest.raises(RowError, match=r"list of pairs: 'long ago'; write .* data\.prompt"):
        parse({"prompt": "p", "completion": "c", "history": "long ago"})
    with pytest.raises(RowError, match="put its turns into the prompt"):
        parse({"prompt": [USER], "completion": "a", "history": [["h", "i"]]})


# variables of the chat template


@pytest.mark.parametrize(
    ("columns", "kwargs"),
    [
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}),
        ({"chat_template_kwargs": '{"enable_thinking": false}'}, {"enable_thinking": False}),
        ({"chat_template_kwargs": {"enable_thinking": None, "a": 1}}, {"a": 1}),
        ({"chat_template_kwargs": None}, {}),
        ({"enable_thinking": True}, {"enable_thinking": True}),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"a": 1}},
            {"a": 1, "reasoning_effort": "low"},
        ),
    ],
)
def test_a_row_may_give_variables_of_the_chat_template(columns, kwargs):
    record = {"messages": [USER, ASSISTANT], **columns}
    assert parse(record).template_kwargs == kwargs
    assert parse(record).findings == ()
    assert prompt(record).template_kwargs == kwargs


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs are not an object: got list; write"),
        ({"chat_template_kwargs": {"tools": []}}, "hold what the row has elsewhere: tools"),
        (
            {"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}},
            "two values of enable_thinking",
        ),
    ],
)
def test_malformed_variables_are_an_error(columns, message):
    with pytest.raises(RowError, match=message):
        parse({"messages": [USER, ASSISTANT], **columns})


# rows to generate from


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "q"},
        {"prompt": "q", "completion": "a"},
        {"prompt": "q", "completion": None},
        {"prompt": [USER]},
        {"prompt": [{**USER, "weight": "?"}], "completion": ""},
        {"prompt": "q", "completion": "a", "label": False, "weight": 0},
        {"instruction": "q"},
        {"question": "q"},
        {"question": "q", "answer": ""},
        {"messages": [USER]},
        {"messages": json.dumps([USER])},
        {"messages": [USER, ASSISTANT]},
        {"messages": [USER, {**ASSISTANT, "train": False, "mask": False}]},
        {"messages": [USER, {"role": "assistant", "content": None}]},
        {"messages": [USER], "loss_mask": [0]},
        {"messages": [USER, {"role": "function_call", "content": '{"name": "f"}'}]},
        {"messages": [USER, ASSISTANT, {"role": "function_call", "content": "x"}]},
        {"conversations": [{"from": "human", "value": "q"}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    ],
)
def test_a_prompt_is_the_row_without_its_answer(record):
    row = prompt(record)
    assert row.messages == [USER]
    assert row.weights is None


def test_a_prompt_of_several_turns_keeps_the_earlier_answers():
    turns = [USER, {**ASSISTANT, "weight": 0}, USER]
    assert prompt({"messages": turns}).messages == [USER, ASSISTANT, USER]
    assert prompt({"messages": turns}, system_prompt="S").messages[0] == SYSTEM


def test_a_prompt_of_plain_text_is_what_is_not_trained_on():
    assert prompt({"text": "hi"}) == PlainText([("hi", 1)])
    assert prompt({"prompt": "hi"}).plain == PlainText([("hi", 0)])
    segments = [{"text": "q", "label": False}, {"text": "a", "label": True}]
    assert prompt({"segments": segments}) == PlainText([("q", 0)])


def test_a_prompt_that_is_malformed_is_an_error():
    with pytest.raises(RowError, match="unknown role"):
        prompt({"messages": [{"role": "x", "content": "q"}]})
    with pytest.raises(RowError, match="column 'prompt' is null"):
        prompt({"prompt": None})
