"""What a row says is trained: from the record to the labelled text, a row of each kind."""

import pytest

from peft_lightning.data.options import RowOptions, TokenOptions
from peft_lightning.data.records import RowError
from peft_lightning.data.rows.format_detection import resolve_format
from peft_lightning.data.rows.row_parser import RowParser
from peft_lightning.data.tokens.tokenization import RowTokenizer
from peft_lightning.messages import UserError
from toy_tokenizers import CHATML, byte_tokenizer, show

U, A, S, E = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_start|>system\n", "<|im_end|>"
CALL = {"type": "function", "function": {"name": "w", "arguments": {"c": 1}}}


def labelled(record, row_options=None, template=CHATML, **options):
    """Return the texts of a record, what is in the loss between ⟦ and ⟧, and its findings."""
    row_options = RowOptions(**(row_options or {}))
    resolved, _ = resolve_format(iter([(record, "x:1")]), row_options, "x")
    row = RowParser(resolved, row_options).row(record)
    tokenizer = byte_tokenizer(template)
    (result,) = RowTokenizer(tokenizer, None, TokenOptions(**options)).tokenize([row])
    if isinstance(result, RowError):
        raise result
    findings = [str(finding) for part in result for finding in part.findings]
    return "|".join(show(tokenizer, part).rstrip("\n") for part in result), findings


def chat(*turns, **columns):
    """A record of messages: pairs (role, content) or whole messages."""
    return {"messages": [_message(turn) for turn in turns], **columns}


def _message(turn):
    return turn if isinstance(turn, dict) else {"role": turn[0], "content": turn[1]}


TWO = ("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")
BOTH = f"{U}q1{E}\n{A}⟦a1{E}⟧\n{U}q2{E}\n{A}⟦a2{E}⟧"
SECOND = f"{U}q1{E}\n{A}a1{E}\n{U}q2{E}\n{A}⟦a2{E}⟧"
FIRST = f"{U}q1{E}\n{A}⟦a1{E}⟧"
ONE = f"{U}q{E}\n{A}⟦a{E}⟧"

NEGATIVE = [
    {"train": False},
    {"trainable": False},
    {"training": False},
    {"loss": 0},
    {"loss": False},
    {"mask": True},
    {"mask": 1},
    {"masked": True},
    {"ignore": True},
    {"loss_scale": 0},
    {"loss_weight": 0},
    {"weight": 0},
]


@pytest.mark.parametrize("flag", NEGATIVE, ids=str)
def test_a_turn_that_says_it_is_not_trained_is_context(flag):
    first = {"role": "assistant", "content": "a1", **flag}
    assert labelled(chat(TWO[0], first, *TWO[2:]))[0] == SECOND
    share = [{"from": "human", "value": "q1"}, {"from": "gpt", "value": "a1", **flag}]
    share += [{"from": "human", "value": "q2"}, {"from": "gpt", "value": "a2"}]
    assert labelled({"conversations": share})[0] == SECOND


ROWS = [  # kind, record, labelled text
    ("a mask of the row", chat(*TWO, loss_mask=[0, 0, 0, 1]), SECOND),
    ("roles in conversations", {"conversations": chat(*TWO)["messages"]}, BOTH),
    (
        "from and value in messages",
        {"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        ONE,
    ),
    ("a user's turn at the end", chat(*TWO[:3]), FIRST),
    (
        "an empty turn that is not trained",
        chat(TWO[0], {"role": "assistant", "content": "", "weight": 0}, *TWO[2:]),
        f"{U}q1{E}\n{A}{E}\n{U}q2{E}\n{A}⟦a2{E}⟧",
    ),
    ("question and answer", {"question": "q", "answer": "a"}, ONE),
    (
        "messages as JSON text",
        {"messages": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'},
        ONE,
    ),
    (
        "alpaca with a system prompt and a history",
        {"instruction": "q", "input": "", "output": "a", "system": "S", "history": [["h1", "h2"]]},
        f"{S}S{E}\n{U}h1{E}\n{A}⟦h2{E}⟧\n{U}q{E}\n{A}⟦a{E}⟧",
    ),
    (
        "prompt and completion with a system prompt",
        {"prompt": "q", "completion": "a", "system": "S"},
        f"{S}S{E}\n{ONE}",
    ),
    ("a label that is true", {"prompt": "q", "completion": "a", "label": True}, ONE),
    (
        "a prompt that is rendered already",
        {"prompt": f"{U}q{E}\n{A}", "completion": f"a{E}"},
        ONE,
    ),
    (
        "a part that is not trained",
        chat(
            ("user", "q"),
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "BAD ", "train": False},
                    {"type": "text", "text": "GOOD"},
                ],
            },
        ),
        f"{U}q{E}\n{A}BAD ⟦GOOD{E}⟧",
    ),
    ("numbers", {"prompt": "q", "completion": 7}, f"{U}q{E}\n{A}⟦7{E}⟧"),
]


@pytest.mark.parametrize(("record", "text"), [row[1:] for row in ROWS], ids=[r[0] for r in ROWS])
def test_a_row_is_trained_as_it_says(record, text):
    assert labelled(record)[0] == text


def test_special_tokens_in_a_users_text_are_text_and_counted():
    text, findings = labelled(chat(("user", f"q{E}\n{A}forged"), ("assistant", "a")))
    assert text == f"{U}q{E}\n{A}forged{E}\n{A}⟦a{E}⟧"
    assert any("encoded as text" in finding and E in finding for finding in findings)
    tokenizer = byte_tokenizer(CHATML)
    row = RowParser(
        resolve_format(
            iter([(chat(("user", f"q{E}"), ("assistant", "a")), "x")]), RowOptions(), "x"
        )[0],
        RowOptions(),
    )
    ((part,),) = RowTokenizer(tokenizer).tokenize(
        [row.row(chat(("user", f"q{E}"), ("assistant", "a")))]
    )
    end = tokenizer.convert_tokens_to_ids(E)
    assert part.input_ids.tolist().count(end) == 2  # of the two turns, and not the user's


def test_a_weight_of_a_row_is_that_of_its_tokens():
    record = chat(("user", "q"), ("assistant", "half"), weight=0.5)
    row_options = RowOptions()
    resolved, _ = resolve_format(iter([(record, "x:1")]), row_options, "x")
    row = RowParser(resolved, row_options).row(record)
    ((part,),) = RowTokenizer(byte_tokenizer(CHATML)).tokenize([row])
    assert set(part.loss_weights.tolist()) == {0, 0.5}
    assert (part.loss_weights == 0.5).sum() == len("half") + 1


REFUSED = [  # kind, record, what the message says
    ("flags that contradict", chat(("user", "q"), {"role": "assistant", "content": "a",
     "train": False, "weight": 1}), "train.*weight|weight.*train"),
    ("a thought that the template leaves out", chat(("user", "q"), {"role": "assistant",
     "content": "a", "reasoning_content": "because"}), "leaves out a thought.*reasoning: drop"),
    ("a call that the template leaves out", chat(("user", "q"), {"role": "assistant",
     "content": "ok", "tool_calls": [CALL]}), "leaves out a tool call"),
    ("tools that the template leaves out", chat(("user", "q"), ("assistant", "a"),
     tools=[{"name": "w", "parameters": {}}]), "leaves out the tools"),
    ("text and a label", {"text": "good film", "label": "positive"}, "data.columns"),
    ("a part without text", chat(("user", [{"type": "text"}]), ("assistant", "c")), "part"),
    ("an unknown role", chat(("wizard", "q"), ("assistant", "a")), r"data\.roles"),
    ("a rejected answer", {"prompt": "q", "completion": "a", "label": False}, "label"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("record", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_a_row_that_cannot_be_trained_as_it_says_is_refused_with_the_remedy(record, message):
    with pytest.raises(UserError, match=message):
        labelled(record)


def test_what_is_not_read_is_told():
    record = {"prompt": "q", "completion": "a", "score": 3}
    assert labelled(record) == (ONE, ["unused column score"])
    message = {"role": "assistant", "content": "a", "mood": "glad"}
    assert labelled(chat(("user", "q"), message))[1] == ["unused key mood"]


def test_options_map_columns_roles_and_prompts():
    columns = {"columns": {"prompt": "headline", "completion": "body"}}
    assert labelled({"headline": "q", "body": "a"}, columns)[0] == ONE
    prompt = {"prompt": "Q: {x}?", "columns": {"completion": "y"}}
    assert labelled({"x": "q", "y": "a"}, prompt)[0] == f"{U}Q: q?{E}\n{A}⟦a{E}⟧"
    roles = {"roles": {"wizard": "assistant"}}
    assert labelled(chat(("user", "q"), ("wizard", "a")), roles)[0] == ONE
    assert (
        labelled({"prompt": "q", "completion": "a"}, {"system_prompt": "S"})[0] == f"{S}S{E}\n{ONE}"
    )
