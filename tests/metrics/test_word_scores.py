"""ROUGE and F1 against their definitions, written out, over words of any script."""

import itertools
import re
import string
import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_lightning.metrics.rouge import rouge_f1
from peft_lightning.metrics.token_f1 import token_f1
from peft_lightning.metrics.words import words

TEXTS = st.text(alphabet="ab A.,the9-_'\n", max_size=24)
WORDS = st.lists(st.sampled_from(["서울", "a", "kein", "नहीं"]), max_size=6).map(" ".join)


def f1(hits, given, wanted):
    precision, recall = hits / given, hits / wanted
    return 2 * precision * recall / (precision + recall) if hits else 0.0


def rouge_n(n, answer, reference):
    """Lin 2004, section 2, with one reference."""
    grams = [Counter(itertools.pairwise(t) if n == 2 else t) for t in (answer, reference)]
    if not all(grams):
        return 0.0
    hits = sum(min(number, grams[1][gram]) for gram, number in grams[0].items())
    return f1(hits, grams[0].total(), grams[1].total())


def rouge_l(answer, reference):
    """Lin 2004, section 3.1: every subsequence of the answer is tried."""
    if not answer or not reference:
        return 0.0

    def stands_in(sequence):
        rest = iter(reference)
        return all(word in rest for word in sequence)

    lengths = range(len(answer), -1, -1)
    longest = next(n for n in lengths if any(map(stands_in, itertools.combinations(answer, n))))
    return f1(longest, len(answer), len(reference))


@settings(max_examples=60, deadline=None)
@given(WORDS, WORDS)
def test_rouge_is_the_f1_of_n_grams_and_of_the_longest_common_subsequence(answer, reference):
    pair = answer.split(), reference.split()
    assert rouge_f1("rouge1", answer, reference) == pytest.approx(rouge_n(1, *pair), rel=1e-6)
    assert rouge_f1("rouge2", answer, reference) == pytest.approx(rouge_n(2, *pair), rel=1e-6)
    assert rouge_f1("rougeL", answer, reference) == pytest.approx(rouge_l(*pair), rel=1e-6)


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_words_of_ascii_text_are_the_tokens_of_rouge_score(text):
    assert words(text) == re.sub(r"[^a-z0-9]+", " ", text.lower()).split()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("서울은 수도, 그렇다!", ["서울은", "수도", "그렇다"]),
        ("東京タワー 2つ", ["東", "京", "タ", "ワ", "ー", "2", "つ"]),
        ("naïve Straße — ÉTÉ", ["naïve", "straße", "été"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("กำลังดี", ["ก", "ำ", "ลั", "ง", "ดี"]),
        ("क्\u200dष", ["क्ष"]),
        ("a\u00adb c", ["ab", "c"]),
        ("😀 … ", []),
    ],
)
def test_words_are_runs_of_letters_marks_and_digits_of_any_script(text, expected):
    assert words(text) == [unicodedata.normalize("NFC", word) for word in expected]


def test_texts_that_look_the_same_have_the_same_words():
    decomposed = unicodedata.normalize("NFD", "서울 été")
    assert decomposed != "서울 été"
    assert words(decomposed) == words("서울 été")
    assert token_f1(decomposed, "서울 été") == 1


def test_a_korean_answer_is_scored_and_a_wrong_one_is_zero():
    assert rouge_f1("rougeL", "수도는 서울 이다", "수도는 부산 이다") == pytest.approx(2 / 3)
    assert rouge_f1("rouge1", "부산", "서울") == 0


def squad_f1(answer, reference):
    """The official script of SQuAD 2.0, evaluate-v2.0.py, in its own steps."""

    def normalize(text):
        text = "".join(ch for ch in text.lower() if ch not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    gold, pred = normalize(reference), normalize(answer)
    num_same = sum((Counter(gold) & Counter(pred)).values())
    if len(gold) == 0 or len(pred) == 0:
        return int(gold == pred)
    if num_same == 0:
        return 0
    precision, recall = num_same / len(pred), num_same / len(gold)
    return 2 * precision * recall / (precision + recall)


@settings(max_examples=200, deadline=None)
@given(TEXTS, TEXTS)
def test_f1_of_ascii_texts_is_that_of_squad(answer, reference):
    assert token_f1(answer, reference) == pytest.approx(squad_f1(answer, reference), rel=1e-12)


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("The «Paris»!", "paris", 1),
        ("서울은 수도。", "서울은 도시", 1 / 2),
        ("東京都", "東京", 4 / 5),
    ],
)
def test_f1_removes_the_punctuation_of_every_script(answer, reference, score):
    assert token_f1(answer, reference) == pytest.approx(score)
