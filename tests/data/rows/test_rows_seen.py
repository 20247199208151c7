"""Rows as people have them, each with what is trained, or why it is not."""

import json

import pytest

from peft_lightning.data.files.sources import find_source
from peft_lightning.data.options import RowOptions, TokenOptions
from peft_lightning.data.records import DroppedRowError, RowError
from peft_lightning.data.rows.format_detection import detect_format, resolve_format
from peft_lightning.data.rows.row_parser import RowParser
from peft_lightning.data.tokens.tokenization import RowTokenizer
from peft_lightning.messages import UserError
from toy_tokenizers import CHATML, byte_tokenizer

PRINTS_THOUGHTS = CHATML.replace(
    "m['content']",
    "('<think>' + m['reasoning_content'] + '</think>' if"
    " m['reasoning_content'] else '') + m['content']",
)


def marked(row):
    """Return what a row says, one line for each message, with its weight in brackets."""
    lines = []
    for i, message in enumerate(row.messages):
        parts = row.parts.get(i, [(message["content"], row.weight(i))])
        said = "".join(f"[{w:g}:{t}]" if w else str(t) for t, w in parts if t is not None)
        if thought := message.get("reasoning_content"):
            said = f"<{thought}>{said}"
        for call in message.get("tool_calls", []):
            said += f" {call['function']['name']}({json.dumps(call['function']['arguments'])})"
        lines.append(f"{message['role']}: {said}")
    return "\n".join(lines)


def turns(*texts, **answer):
    """Return the turns of a conversation, with flags on the first answer."""
    roles = ("user", "assistant")
    found = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    found[1] |= answer
    return found


def share(*texts, **answer):
    names = {"role": "from", "content": "value"}
    return [{names.get(k, k): v for k, v in turn.items()} for turn in turns(*texts, **answer)]


W = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
ROWS = [
    (
        "axolotl",
        {"conversations": share("Hi", "Bad", "Again", "Good", train=False)},
        {},
        "user: Hi\nassistant: Bad\nuser: Again\nassistant: [1:Good]",
        [],
    ),
    (
        "OpenAI",
        {"messages": turns("Hi", "Bad", "Again", "Good", weight=0)},
        {},
        "user: Hi\nassistant: Bad\nuser: Again\nassistant: [1:Good]",
        [],
    ),
    (
        "ms-swift",
        {"messages": turns("Hi", "Bad", "Again", "Good", loss=False), "id": 1},
        {},
        "user: Hi\nassistant: Bad\nuser: Again\nassistant: [1:Good]",
        ["unused column id"],
    ),
    (
        "torchtune",
        {"messages": turns("Hi", "Bad", "Again", "Good", masked=True)},
        {},
        "user: Hi\nassistant: Bad\nuser: Again\nassistant: [1:Good]",
        [],
    ),
    (
        "fractions",
        {"messages": turns("Hi", "Half", "Again", "Good", weight=0.5), "weight": 0.5},
        {},
        "user: Hi\nassistant: [0.25:Half]\nuser: Again\nassistant: [0.5:Good]",
        [],
    ),
    (
        "loss_mask",
        {"messages": turns("Hi", "Bad", "Again", "Good"), "loss_mask": [0, 0, 0, 1]},
        {},
        "user: Hi\nassistant: Bad\nuser: Again\nassistant: [1:Good]",
        [],
    ),
    (
        "parts",
        {
            "messages": turns(
                "Hi",
                [
                    {"type": "text", "text": "Bad ", "train": False},
                    {"type": "text", "text": "Good"},
                ],
            )
        },
        {},
        "user: Hi\nassistant: Bad [1:Good]",
        [],
    ),
    (
        "unknown flag",
        {"messages": turns("Hi", "Ho", score=0.1)},
        {},
        "user: Hi\nassistant: [1:Ho]",
        ["unused key score"],
    ),
    (
        "thought",
        {"messages": turns("Hi", "Ho", thinking="because")},
        {},
        "user: Hi\nassistant: <because>[1:Ho]",
        [],
    ),
    (
        "null beside a call",
        {"messages": turns("Hi", None, tool_calls=[W])},
        {},
        'user: Hi\nassistant:  weather({"city": "Oslo"})',
        [],
    ),
    (
        "parameters",
        {
            "messages": turns(
                "Hi",
                None,
                tool_calls=[{"function": {"name": "weather", "parameters": '{"city": "Oslo"}'}}],
            )
        },
        {},
        'user: Hi\nassistant:  weather({"city": "Oslo"})',
        [],
    ),
    (
        "LLaMA-Factory",
        {
            "conversations": [
                {"from": "human", "value": "Hi"},
                {
                    "from": "function_call",
                    "value": '{"name": "weather", "arguments": {"city": "Oslo"}}',
                },
                {"from": "observation", "value": "Snow"},
                {"from": "gpt", "value": "Snow."},
            ],
            "system": "S",
            "tools": "[]",
        },
        {},
        'system: S\nuser: Hi\nassistant:  weather({"city": "Oslo"})\n'
        "tool: Snow\nassistant: [1:Snow.]",
        [],
    ),
    (
        "LLaMA-Factory's history",
        {
            "instruction": "Go on",
            "input": "",
            "output": "Third",
            "system": "S",
            "history": [["First?", "First"]],
        },
        {},
        "system: S\nuser: First?\nassistant: [1:First]\nuser: Go on\nassistant: [1:Third]",
        [],
    ),
    (
        "OpenOrca",
        {"id": "x", "system_prompt": "S", "question": "Q", "response": "A"},
        {},
        "system: S\nuser: Q\nassistant: [1:A]",
        ["unused column id"],
    ),
    (
        "Dolly",
        {"instruction": "Sum up", "context": "Long", "response": "Short", "category": "x"},
        {},
        "user: Sum up\n\nLong\nassistant: [1:Short]",
        ["unused column category"],
    ),
    ("GSM8K", {"question": "1+1", "answer": "2"}, {}, "user: 1+1\nassistant: [1:2]", []),
    (
        "a sentiment",
        {"sentence": "Fine film", "label": 1, "idx": 7},
        {"prompt": "Review: {sentence}\nGood?", "columns": {"completion": "label"}},
        "user: Review: Fine film\nGood?\nassistant: [1:1]",
        ["unused column idx", "number taken as text completion"],
    ),
    (
        "an intent",
        {"text": "wake me", "category": "alarm"},
        {"columns": {"prompt": "text", "completion": "category"}},
        "user: wake me\nassistant: [1:alarm]",
        [],
    ),
    (
        "arithmetic",
        {"sQuestion": "2*21?", "lSolutions": [42.0], "iIndex": 0},
        {"columns": {"prompt": "sQuestion", "completion": "lSolutions"}},
        "user: 2*21?\nassistant: [1:42.0]",
        [
            "unused column iIndex",
            "number taken as text completion",
            "list of one value taken as the value completion",
        ],
    ),
    (
        "a table",
        {"mr": {"name": "Aromi", "food": "Thai"}, "ref": "Aromi is Thai."},
        {"prompt": "{mr}", "columns": {"completion": "ref"}},
        'user: {"name": "Aromi", "food": "Thai"}\nassistant: [1:Aromi is Thai.]',
        ["object written as JSON mr"],
    ),
    (
        "TRL's prefill",
        {"prompt": turns("Hi", "I am"), "completion": " here"},
        {},
        "user: Hi\nassistant: I am[1: here]",
        [],
    ),
    (
        "ends with the user",
        {"messages": turns("Hi", "Ho", "Bye")},
        {},
        "user: Hi\nassistant: [1:Ho]",
        ["turns after the last answer left out"],
    ),
    (
        "KTO, good",
        {"prompt": "Hi", "completion": "Ho", "label": True},
        {},
        "user: Hi\nassistant: [1:Ho]",
        [],
    ),
    (
        "a system prompt",
        {"messages": turns("Hi", "Ho")},
        {"system_prompt": "S"},
        "system: S\nuser: Hi\nassistant: [1:Ho]",
        [],
    ),
    (
        "other roles",
        {"dialog": [{"role": "caller", "content": "Hi"}, {"role": "agent", "content": "Ho"}]},
        {"columns": {"messages": "dialog"}, "roles": {"caller": "user", "agent": "assistant"}},
        "user: Hi\nassistant: [1:Ho]",
        [],
    ),
    (
        "messages as text",
        {"messages": json.dumps(turns("Hi", "Ho"))},
        {},
        "user: Hi\nassistant: [1:Ho]",
        [],
    ),
]


@pytest.mark.parametrize(
    ("record", "options", "said", "findings"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS]
)
def test_a_row_is_trained_as_it_says(record, options, said, findings, jsonl):
    options = RowOptions(**options)
    source = find_source(jsonl("rows.jsonl", [record]))
    resolved, rows = resolve_format(source.records(), options, source.name)
    [(read, _)] = rows
    row = RowParser(resolved, options).row(read)
    assert marked(row) == said
    assert sorted(map(str, row.findings)) == sorted(findings)


REFUSED = [
    (
        "contradicting flags",
        {"messages": turns("Hi", "Ho", train=False, weight=1)},
        RowError,
        "train: False and weight: 1; keep the one that is meant",
    ),
    (
        "KTO, bad",
        {"prompt": "Hi", "completion": "Bad", "label": False},
        DroppedRowError,
        "label is false",
    ),
    (
        "classes",
        {"text": "Fine film", "label": "positive"},
        UserError,
        r"`data\.columns: \{prompt: text, completion: label\}`",
    ),
    (
        "preferences",
        {"prompt": "Hi", "chosen": "Ho", "rejected": "Bad"},
        UserError,
        r"`data\.columns: \{prompt: prompt, completion: chosen\}`",
    ),
    (
        "an image",
        {"messages": turns([{"type": "image_url"}], "Ho")},
        RowError,
        "it is 'image_url'; only text can be trained on",
    ),
    (
        "a part without text",
        {"messages": turns([{"type": "text"}], "Ho")},
        RowError,
        r"write \{'type': 'text', 'text': \.\.\.\}",
    ),
    (
        "an unknown role",
        {"messages": [*turns("Hi", "Ho"), {"role": "agent", "content": "x"}]},
        RowError,
        r"`data\.roles: \{agent: assistant\}`",
    ),
    (
        "two system prompts",
        {"conversations": [{"from": "system", "value": "S"}, *share("Hi", "Ho")], "system": "T"},
        RowError,
        "keep one",
    ),
    (
        "a reading test",
        {"passage": "P", "question": "Q", "answer": "A"},
        UserError,
        r'`data\.prompt: "\{passage\} \{question\}"`',
    ),
]


@pytest.mark.parametrize(
    ("record", "error", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_a_row_that_cannot_be_trained_as_it_says_is_refused_with_the_remedy(record, error, message):
    def parse():
        resolved, _ = resolve_format(iter([(record, "x:1")]), RowOptions(), "x")
        return RowParser(resolved, RowOptions()).row(record)

    with pytest.raises(error, match=message):
        parse()


SAME_PROMPT = [r for r in ROWS if r[0] not in ("ends with the user", "parts") and "(" not in r[3]]


@pytest.mark.parametrize(
    ("record", "options"), [r[1:3] for r in SAME_PROMPT], ids=[r[0] for r in SAME_PROMPT]
)
def test_generation_is_given_what_precedes_the_last_answer_in_training(record, options):
    options = RowOptions(**options)
    last_answer = RowTokenizer(byte_tokenizer(PRINTS_THOUGHTS), options=TokenOptions("last"))

    def parser(prompts_only):
        return RowParser(detect_format(record, "x", options, prompts_only), options)

    [[row]] = last_answer.tokenize([parser(False).row(record)])
    prompt = last_answer.encode_prompt(parser(True).prompt(record))
    assert row.input_ids[: row.loss_weights.nonzero()[0][0]].tolist() == prompt
