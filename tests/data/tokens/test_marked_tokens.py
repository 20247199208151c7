"""The text of single tokens, and rows with the tokens in the loss marked."""

import numpy as np
import pytest

from peft_lightning.data.tokens.marked_tokens import (
    GREEN,
    MarkedToken,
    marked_text,
    marked_tokens,
    short_marked_text,
    token_texts,
)
from toy_tokenizers import byte_tokenizer, fallback_tokenizer

TEXTS = [
    "plain words",
    " space first",
    "é 한국 👩‍👧\n\n",
    "a\ufffdb",
    "",
    "hi hi",
    "[INST] hi [/INST]é",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("make", [byte_tokenizer, fallback_tokenizer])
def test_the_texts_of_the_tokens_are_joined_that_of_the_row(make, text):
    tokenizer = make()
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert "".join(token_texts(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_character_of_several_tokens_is_the_text_of_its_last():
    tokenizer = byte_tokenizer()
    ids = list(tokenizer("é!", add_special_tokens=False)["input_ids"])
    assert token_texts(tokenizer, ids) == ["", "é", "!"]


def test_each_token_has_its_id_weight_and_whether_it_is_special():
    tokenizer = byte_tokenizer()
    ids = tokenizer("ab</s>", add_special_tokens=False)["input_ids"]
    tokens = marked_tokens(tokenizer, np.array(ids), np.array([0, 0.5, 1], dtype=np.float32))
    assert [t.text for t in tokens] == ["a", "b", "</s>"]
    assert [t.is_special for t in tokens] == [False, False, True]
    assert [t.to_json() for t in tokens] == [
        {"text": text, "id": i, "in_loss": weight > 0, "weight": weight}
        for text, i, weight in zip(["a", "b", "</s>"], ids, [0, 0.5, 1], strict=True)
    ]


def row(*parts: tuple[str, float]) -> list[MarkedToken]:
    return [MarkedToken(c, 0, weight) for text, weight in parts for c in text]


def test_stretches_in_the_loss_are_between_marks_with_a_weight_other_than_1():
    tokens = row(("ask ", 0), ("answer", 1), (" more ", 0), ("half", 0.5), ("whole", 1))
    assert marked_text(tokens) == "ask ⟦answer⟧ more ⟦0.5:half⟧⟦whole⟧"


def test_colours_mark_the_same_tokens_and_each_line_has_its_own():
    text = marked_text(row(("ask ", 0), ("an\nswer", 1)), color=True)
    assert text == f"ask {GREEN}an\x1b[0m\n{GREEN}swer\x1b[0m"


@pytest.mark.parametrize("color", [False, True])
def test_what_acts_on_a_terminal_is_escaped(color):
    text = marked_text(row(("\x1b[2J\x07\r\u202e⟦fake⟧\ue000\u009b", 0)), color)
    assert text == "\\x1b[2J\\x07\\x0d\\u202e\\u27e6fake\\u27e7\\ue000\\x9b"


def test_a_long_row_is_one_line_that_shows_both_ends_of_each_stretch():
    tokens = row(("q" * 500 + "\n", 0), ("a" * 500 + "!", 1))
    text = short_marked_text(tokens, limit=40)
    assert text == "q" * 10 + " … " + "q" * 9 + "↵⟦" + "a" * 10 + " … " + "a" * 9 + "!⟧"
    short = row(("q\n", 0), ("a", 1))
    assert short_marked_text(short) == "q↵⟦a⟧"


def test_a_row_of_many_turns_shows_the_first_and_the_last_ones():
    turns = [part for i in range(100) for part in ((f"q{i} ", 0), (f"a{i} ", 1))]
    text = short_marked_text(row(*turns))
    assert len(text) < 400
    assert text.startswith("q0 ⟦a0 ⟧q1 ")
    assert text.endswith("q99 ⟦a99 ⟧")
