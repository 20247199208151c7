"""Any record at all becomes a row, or an error with a reason."""

import copy
import json
import random

import pytest

from peft_lightning.data.options import RowOptions
from peft_lightning.data.records import RowError
from peft_lightning.data.rows.conversations import Conversation, PlainText
from peft_lightning.data.rows.format_detection import ResolvedFormat, detect_format
from peft_lightning.data.rows.formats import FORMATS, OPTIONAL_COLUMNS, REQUIRED_COLUMNS
from peft_lightning.data.rows.loss_flags import EXCLUDING, INCLUDING, LABELS, ROW_FLAGS
from peft_lightning.data.rows.roles import ROLES
from peft_lightning.data.rows.row_parser import RowParser
from peft_lightning.data.rows.turns import THOUGHTS, TRAIN_DETAILS
from peft_lightning.messages import UserError

pytestmark = pytest.mark.slow

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SPAN = {"begin_offset": 0, "end_offset": 0, "train": True}
SEEDS = [
    {"prompt": "p", "completion": "c", "label": True, "weight": 0.5, "history": [["a", "b"]]},
    {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "bot", "content": "a"}]},
    {"instruction": "i", "input": "n", "output": "o", "system": "S"},
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "q"}], "weight": 0},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning": "r"},
            {"role": "tool", "content": "1", "tool_call_id": "1"},
            {"role": "assistant", "content": "a", "train_detail": [SPAN]},
        ],
        "tools": [TOOL],
        "chat_template_kwargs": {"a": 1},
        "loss_mask": [0, 1, 0, 1],
    },
    {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "f"}'},
            {"from": "gpt", "value": [{"type": "text", "text": "a", "train": False}]},
        ],
        "functions": [TOOL["function"]],
    },
    {"segments": [{"text": "a", "label": False}, {"text": "b", "label": True}]},
    {"text": "t", "weight": 2},
]
ATOMS = [
    *(None, True, False, 0, 1, -1, 0.5, 10**30, float("nan"), float("inf"), "", " ", "a", "0"),
    *("user", "assistant", "function_call", "true", "null", "[]", "{}", '[{"name": "f"}]', "\0"),
    *("\ud83d", '"\\ud83d"', "[" * 2000, "1" * 5000, [], {}, [[]], [{}], [None], {"": None}),
    *(
        {"role": "user"},
        {"type": "text"},
        {"type": "text", "text": "a"},
        CALL,
        [CALL],
        TOOL,
        [SPAN],
    ),
]
KEYS = [
    *("role", "from", "content", "value", "type", "text", "name", "arguments", "parameters"),
    *("function", "tool_calls", "function_call", "begin_offset", "end_offset", "label", "extra"),
    *(*INCLUDING, *EXCLUDING, *THOUGHTS, *TRAIN_DETAILS, *LABELS, *ROW_FLAGS),
    *{column for columns in OPTIONAL_COLUMNS.values() for column in columns},
]


def anything(draw, depth=0):
    if depth > 3 or draw.random() < 0.5:
        return copy.deepcopy(draw.choice([*ATOMS, draw.choice(list(ROLES))]))
    inner = [anything(draw, depth + 1) for _ in range(draw.randrange(4))]
    if draw.random() < 0.4:
        return inner
    if draw.random() < 0.2:
        return json.dumps(inner, default=str)
    return {draw.choice(KEYS): value for value in inner}


def nodes(value):
    """Return every list and dict in ``value``, each with its keys or indices."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    own = [value] if isinstance(value, (dict, list)) else []
    return own + [node for item in inside for node in nodes(item)]


def mutated(draw):
    record = copy.deepcopy(draw.choice(SEEDS))
    for _ in range(draw.choice([1, 1, 2, 5])):
        node = draw.choice(nodes(record))
        if isinstance(node, dict):
            key = draw.choice([*node, draw.choice(KEYS)])
            if draw.random() < 0.15:
                node.pop(key, None)
            else:
                node[key] = anything(draw)
        elif node and draw.random() < 0.7:
            node[draw.randrange(len(node))] = anything(draw)
        else:
            node.insert(draw.randrange(len(node) + 1), anything(draw))
    return record


def check(row):
    assert isinstance(row, (Conversation, PlainText))
    if isinstance(row, PlainText):
        assert all(isinstance(text, str) and 0 <= w < float("inf") for text, w in row.segments)
        return
    assert row.messages
    for i, message in enumerate(row.messages):
        assert message["role"] in ("system", "user", "assistant", "tool")
        content = message["content"]
        assert isinstance(content, str) or (content is None and message["tool_calls"])
        assert 0 <= row.weight(i) < float("inf")
        for call in message.get("tool_calls", []):
            assert isinstance(call["function"]["arguments"], dict)
        if i in row.parts:
            assert "".join(text for text, _ in row.parts[i]) == (content or "")
            assert all(0 <= weight < float("inf") for _, weight in row.parts[i])


def refusal(function, *args):
    """Return the result of a function and the error that refuses its arguments."""
    try:
        return function(*args), None
    except UserError as error:
        return None, error


@pytest.mark.parametrize("seed", range(8))
def test_a_record_may_be_anything(seed):
    draw = random.Random(seed)
    options = RowOptions(roles={"a": "assistant"})
    parsers = {name: RowParser(ResolvedFormat(name), options) for name in FORMATS}
    rows = 0
    for _ in range(1500):
        record = mutated(draw)
        fits = [n for n, needed in REQUIRED_COLUMNS.items() if set(needed) & set(record)]
        parser = parsers[draw.choice(fits or list(FORMATS))]
        for parse in (parser.row, parser.prompt):
            row, error = refusal(parse, record)
            if error is not None:
                assert isinstance(error, RowError)
                assert error.reason
                assert "\n" not in str(error)
            elif parse == parser.row:
                check(row)
                rows += 1
        _, error = refusal(detect_format, record, "x", options)
        assert error is None or str(error).startswith("x: ")
    assert rows > 200  # not all are refused


def test_a_value_may_be_nested_so_deeply_that_python_cannot_print_it():
    deep = value = []
    for _ in range(5000):
        value.append(value := [])
    tried = 0
    for seed in SEEDS:
        for i, node in enumerate(nodes(seed)):
            for key in [*node, "extra"] if isinstance(node, dict) else range(len(node)):
                record = copy.deepcopy(seed)
                nodes(record)[i][key] = deep
                parser = RowParser(detect_format(record, "x"), RowOptions())
                for parse in (parser.row, parser.prompt):
                    _, error = refusal(parse, record)
                    assert error is None or isinstance(error, RowError)
                    tried += 1
    assert tried > 100
