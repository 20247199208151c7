"""The metrics by name: one score a row, one of all rows, and which names there are."""

import math

import pytest

from peft_lightning.messages import UserError
from peft_lightning.metrics import (
    METRICS,
    check_metrics,
    corpus_score,
    most_frequent_share,
    row_scores,
)


@pytest.mark.parametrize("name", METRICS)
def test_the_score_of_an_equal_answer_is_one_in_every_script(name):
    texts = [
        '{"a": "one two three four"}',
        '["서울은 대한민국의 수도이다 그렇다"]',
        '"東京は日本の首都です"',
    ]
    assert row_scores(name, texts, texts) == pytest.approx([1, 1, 1], rel=1e-6)
    assert corpus_score(name, texts, texts) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_a_score_is_zero_of_an_empty_answer_and_within_its_range(name):
    assert row_scores(name, ["", "xyz qq"], ["[1]", '"서울"']) == [0, 0]
    assert corpus_score(name, [""], ["[1]"]) == 0
    assert math.isnan(corpus_score(name, [], []))


@pytest.mark.parametrize("name", [n for n in METRICS if n not in ("bleu", "chrf")])
def test_the_score_of_a_corpus_is_the_mean_of_its_rows(name):
    answers, references = ["a cat sat", "[1]", "dog"], ["the cat sat down", "[1]", "cat"]
    rows = row_scores(name, answers, references)
    assert corpus_score(name, answers, references) == pytest.approx(sum(rows) / 3)


def test_an_unknown_metric_is_named_with_the_one_that_is_meant():
    with pytest.raises(UserError, match=r"no metric rougel; there are .*did you mean rougeL\?"):
        check_metrics(["exact_match", "rougel"])
    check_metrics(["likelihood_accuracy", *METRICS])


def test_what_needs_the_model_is_refused_for_texts():
    with pytest.raises(UserError, match=r"compares likelihoods, not texts"):
        row_scores("likelihood_accuracy", ["a"], ["a"])


def test_answers_and_references_are_as_many():
    with pytest.raises(UserError, match="2 answers cannot be scored by 1 references"):
        row_scores("f1", ["a", "b"], ["a"])


def test_the_most_frequent_answer_is_counted_without_white_space_around_it():
    assert most_frequent_share(["no", "yes", " yes\n", "yes"]) == ("yes", 0.75)
    assert most_frequent_share(["b", "a"]) == ("b", 0.5)
    answer, share = most_frequent_share([])
    assert answer == ""
    assert math.isnan(share)
