"""Answers of rows: their hashes, repetitions and labels."""

from collections import Counter

import numpy as np
import pytest

from peft_lightning.data.audit.answer_findings import is_labels
from peft_lightning.data.audit.answers import (
    LOOP_TOKENS,
    NGRAM,
    AnswerReader,
    prompt_hash,
    repeated_share,
)
from peft_lightning.data.tokens.tokenization import TokenizedRow
from toy_tokenizers import byte_tokenizer


def tokenized(tokenizer, prompt, answer):
    ids = tokenizer(prompt + answer + "</s>", add_special_tokens=False)["input_ids"]
    start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    weights = np.arange(len(ids)) >= start
    return TokenizedRow(np.array(ids, dtype=np.int32), weights.astype(np.float32))


def share_of_repeated(ids) -> float:
    grams = [tuple(ids[i : i + NGRAM]) for i in range(len(ids) - NGRAM + 1)]
    return 1 - len(Counter(grams)) / len(grams)


def test_the_share_of_repeated_ngrams_is_that_of_its_definition():
    draw = np.random.default_rng(0)
    answers = [
        draw.integers(0, high, size, dtype=np.int32)
        for high, size in ((2, 100), (4, 300), (1000, 40), (1, 50), (3, LOOP_TOKENS))
    ]
    expected = [share_of_repeated(ids.tolist()) for ids in answers]
    assert repeated_share(answers) == pytest.approx(expected)
    short = [np.zeros(LOOP_TOKENS - 1, np.int32), np.zeros(0, np.int32)]
    assert repeated_share([*short, answers[0]]) == pytest.approx([0, 0, expected[0]])


def test_answers_are_equal_without_their_prompts_and_special_tokens():
    tokenizer = byte_tokenizer()
    parts = [("a?", "yes"), ("b??", "yes"), ("c?", "no"), ("d?", "so " * 40), ("e?", "")]
    found = AnswerReader(tokenizer).read([[tokenized(tokenizer, *part)] for part in parts])
    assert found.lengths.tolist() == [3, 3, 2, 120, 0]
    assert found.hashes[0] == found.hashes[1]
    assert len(set(found.hashes.tolist())) == 4
    assert found.loops.tolist() == [False, False, False, True, False]
    assert found.texts[int(found.hashes[2])] == "no"


def test_the_answer_of_a_row_of_several_sequences_is_all_of_theirs():
    tokenizer = byte_tokenizer()
    row = [tokenized(tokenizer, "q", "one"), tokenized(tokenizer, "qq", " two")]
    found = AnswerReader(tokenizer).read([row, [tokenized(tokenizer, "q", "one two")]])
    assert found.hashes[0] == found.hashes[1]


@pytest.mark.parametrize(
    ("counts", "labels"),
    [([50, 40], True), ([5, 4], False), ([100], False), ([10] * 101, False), ([11] * 100, True)],
)
def test_answers_are_labels_if_they_are_few_and_each_is_frequent(counts, labels):
    assert is_labels(np.array(counts)) == labels


def test_prompts_are_equal_if_all_before_the_last_answer_is():
    ids = np.arange(9, dtype=np.int32)

    def of(weights, ids=ids):
        return prompt_hash(TokenizedRow(ids, np.array(weights, dtype=np.float32)))

    whole = of([0, 0, 1, 1, 0, 0, 1, 1, 1])
    assert whole == of([0, 0, 0, 0, 0, 0, 1, 0.5, 1])  # the same tokens before the sixth
    assert whole == of([0, 0, 0, 0, 0, 0, 1, 1, 1], np.array([*range(6), 7, 7, 7], np.int32))
    assert whole != of([0, 0, 1, 1, 0, 0, 0, 1, 1])
    assert of([0, 1, 1, 1, 1, 1, 1, 1, 1]) == 0  # no prompt, or BOS alone
