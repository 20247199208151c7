"""Thoughts of the assistant: trained, masked, dropped or refused, in each kind of template."""

import pytest

from peft_lightning.data.options import TokenOptions
from peft_lightning.data.records import RowError
from peft_lightning.data.rows.conversations import Conversation
from peft_lightning.data.tokens.conversation_rendering import OUTSIDE
from peft_lightning.data.tokens.tokenization import RowTokenizer
from template_families import FAMILIES
from toy_tokenizers import byte_tokenizer, show

Q = "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n"
C = "<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n"
DATE = "<|start|>system<|message|>Current date: 2024-07-26<|end|>"
ASKED = DATE + "<|start|>user<|message|>A<|end|><|start|>assistant"
R1 = "<｜begin▁of▁sentence｜><｜User｜>A<｜Assistant｜><think>\n"  # noqa: RUF001
R1_EOS = "<｜end▁of▁sentence｜>"  # noqa: RUF001

FIELD = {"role": "assistant", "content": "B", "reasoning_content": "T"}
INLINE = {"role": "assistant", "content": "<think>\nT\n</think>\n\nB"}
PLAIN = {"role": "assistant", "content": "B"}


def ask(text="A"):
    return {"role": "user", "content": text}


def texts(family, messages, **options):
    tokenizer = FAMILIES[family].tokenizer()
    row_tokenizer = RowTokenizer(tokenizer, options=TokenOptions(**options))
    (encoded,) = row_tokenizer.tokenize([Conversation(messages)])
    if isinstance(encoded, RowError):
        raise encoded
    return [show(tokenizer, part) for part in encoded]


@pytest.mark.parametrize(
    ("family", "answer", "expected"),
    [
        ("chatml", INLINE, f"{Q}<think>\nT⟦\n</think>\n\nB<|im_end|>⟧\n"),
        ("qwen-3", INLINE, f"{Q}<think>\nT⟦\n</think>\n\nB<|im_end|>⟧\n"),
        ("qwen-3", FIELD, f"{Q}<think>\nT⟦\n</think>\n\nB<|im_end|>⟧\n"),
        ("qwen-3", PLAIN, f"{Q}⟦<think>\n\n</think>\n\nB<|im_end|>⟧\n"),
        ("qwq", FIELD, f"{Q}<think>\nT⟦\n</think>\n\nB<|im_end|>⟧\n"),
        ("deepseek-r1", FIELD, f"{R1}T⟦\n</think>\n\nB{R1_EOS}⟧"),
        (
            "harmony",
            FIELD,
            f"{ASKED}<|channel|>analysis<|message|>T⟦<|end|><|start|>assistant"
            "<|channel|>final<|message|>B<|return|>⟧",
        ),
    ],
)
def test_of_a_masked_thought_what_closes_it_and_the_answer_are_in_the_loss(
    family, answer, expected
):
    assert texts(family, [ask(), answer], reasoning="mask") == [expected]


@pytest.mark.parametrize("thought", ["think", "<", "a", "B", "assistant", "T\n\nT"])
def test_a_masked_thought_may_be_text_that_stands_elsewhere_too(thought):
    answer = {"role": "assistant", "content": f"<think>\n{thought}\n</think>\n\nB"}
    for family in ("chatml", "qwen-3", "qwq"):
        assert texts(family, [ask(), answer], reasoning="mask") == [
            f"{Q}<think>\n{thought}⟦\n</think>\n\nB<|im_end|>⟧\n"
        ]


def test_masked_thoughts_of_several_turns_are_masked_in_the_text_of_each():
    second = {"role": "assistant", "content": "<think>\nV\n</think>\n\nD"}
    row = [ask(), INLINE, ask("C"), second]
    assert texts("qwen-3", row, reasoning="mask") == [
        f"{Q}<think>\nT⟦\n</think>\n\nB<|im_end|>⟧\n",
        f"{Q}B<|im_end|>\n{C}<think>\nV⟦\n</think>\n\nD<|im_end|>⟧\n",
    ]
    assert texts("chatml", row, reasoning="mask") == [
        f"{Q}<think>\nT⟦\n</think>\n\nB<|im_end|>⟧\n{C}<think>\nV⟦\n</think>\n\nD<|im_end|>⟧\n"
    ]


@pytest.mark.parametrize("answer", [INLINE, FIELD])
@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("chatml", f"{Q}⟦B<|im_end|>⟧\n"),
        ("qwen-3", f"{Q}⟦<think>\n\n</think>\n\nB<|im_end|>⟧\n"),
        ("qwq", f"{Q}<think>\n⟦\n</think>\n\nB<|im_end|>⟧\n"),
        ("deepseek-r1", f"{R1}⟦\n</think>\n\nB{R1_EOS}⟧"),
        ("harmony", f"{ASKED}⟦<|channel|>final<|message|>B<|return|>⟧"),
    ],
)
def test_a_dropped_thought_leaves_the_answer_as_without_one(family, expected, answer):
    assert texts(family, [ask(), answer], reasoning="drop") == [expected]
    assert texts(family, [ask(), PLAIN], reasoning="train") == [expected]


def test_a_dropped_thought_is_counted():
    tokenizer = FAMILIES["chatml"].tokenizer()
    options = TokenOptions(reasoning="drop")
    ((encoded,),) = RowTokenizer(tokenizer, options=options).tokenize(
        [Conversation([ask(), FIELD])]
    )
    assert [str(finding) for finding in encoded.findings] == ["thought left out"]


@pytest.mark.parametrize("answer", [INLINE, FIELD])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_with_thoughts_are_refused_where_that_is_asked_for(family, answer):
    with pytest.raises(RowError, match="a thought of the assistant: reasoning: train trains it"):
        texts(family, [ask(), answer], reasoning="error")
    assert texts(family, [ask(), PLAIN], reasoning="error")


def test_a_thought_that_is_no_letter_of_the_template_is_missed_though_the_tokens_contain_it():
    answer = {"role": "assistant", "content": "B", "reasoning_content": "END_OF_TURN"}
    with pytest.raises(RowError, match="leaves out a thought: message 2: 'END_OF_TURN'"):
        texts("command-r", [ask(), answer])


def test_two_different_thoughts_in_one_message_are_an_error():
    answer = {**INLINE, "reasoning_content": "V"}
    with pytest.raises(RowError, match="two thoughts in one message: 'V' and 'T'"):
        texts("qwen-3", [ask(), answer])
    same = {**INLINE, "reasoning_content": "T"}
    assert texts("qwen-3", [ask(), same]) == texts("qwen-3", [ask(), INLINE])


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_a_thought_has_the_names_that_are_in_use(name):
    answer = {"role": "assistant", "content": "B", name: "T"}
    for family in ("qwen-3", "qwq", "harmony"):
        assert texts(family, [ask(), answer]) == texts(family, [ask(), FIELD])


def test_everything_in_the_loss_includes_the_thoughts_of_all_turns():
    second = {"role": "assistant", "content": "<think>\nV\n</think>\n\nD"}
    assert texts("qwen-3", [ask(), INLINE, ask("C"), second], train_on="all") == [
        f"{Q}⟦<think>\nT\n</think>\n\nB<|im_end|>⟧\n",
        "<|im_start|>⟦" + f"{Q}B<|im_end|>\n{C}<think>\nV\n</think>\n\nD<|im_end|>\n⟧"[12:],
    ]


def test_a_thought_under_a_prompt_that_switches_thinking_off_is_an_error_with_its_remedy():
    row = Conversation([ask(), INLINE], template_kwargs={"enable_thinking": False})
    (error,) = RowTokenizer(FAMILIES["qwen-3"].tokenizer()).tokenize([row])
    assert isinstance(error, RowError)
    assert "prints something else before an answer than its generation prompt" in str(error)
    assert "reasoning: drop" in str(error)


BLOCKS = (  # prints a thought and the calls, and marks the rest as generated
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}"
    "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name + '()' }}{% endfor %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CALLS = [{"type": "function", "function": {"name": "look", "arguments": {}}}]


@pytest.mark.parametrize(
    ("answer", "options", "subjects"),
    [
        (FIELD, {}, ["thought"]),
        (FIELD, {"reasoning": "mask"}, []),
        (PLAIN, {}, []),
        ({**PLAIN, "tool_calls": CALLS}, {}, ["tool call"]),
        ({**FIELD, "tool_calls": CALLS}, {}, ["thought", "tool call"]),
    ],
)
def test_what_generation_blocks_leave_out_of_an_answer_is_a_finding(answer, options, subjects):
    row_tokenizer = RowTokenizer(byte_tokenizer(BLOCKS), options=TokenOptions(**options))
    ((part,),) = row_tokenizer.tokenize([Conversation([ask(), answer])])
    assert [f.subject for f in part.findings if f.kind == OUTSIDE] == subjects
    marked = show(row_tokenizer.tokenizer, part)
    assert marked.endswith("⟦B<|im_end|>⟧\n")
