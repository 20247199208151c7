"""Exact match, contains and JSON match."""

import pytest

from peft_lightning.metrics.matches import contains, exact_match, json_match


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("Paris", "Paris", 1),
        (" Paris\n", "Paris\u3000", 1),
        ("paris", "Paris", 0),
        ("Paris.", "Paris", 0),
        ("서울", "서울", 1),
        ("", "  ", 1),
    ],
)
def test_exact_match_ignores_white_space_around_the_texts_alone(answer, reference, score):
    assert exact_match(answer, reference) == score


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("The capital is Paris.", " Paris ", 1),
        ("The capital is paris.", "Paris", 0),
        ("수도는 서울입니다", "서울", 1),
        ("anything", "", 0),
        ("\n", "", 1),
    ],
)
def test_contains_is_whether_the_reference_stands_in_the_answer(answer, reference, score):
    assert contains(answer, reference) == score


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ('{"a": 1, "b": [true, null]}', '{"b":[true,null],\n"a":1.0}', 1),
        ('"\\uc11c\\uc6b8"', '"서울"', 1),
        ("[1, 2]", "[2, 1]", 0),
        ("true", "1", 0),
        ('{"a": false}', '{"a": 0}', 0),
        ('"1"', "1", 0),
        ('"true"', "true", 0),
        ("[]", "{}", 0),
        ("null", "false", 0),
        ("9007199254740993", "9007199254740992", 0),  # 2**53 + 1: no float holds it
        ('{"a": 1, "a": 2}', '{"a": 2}', 1),
        ("yes", "yes", 0),
        ("```json\n[1]\n```", "[1]", 0),
        ("NaN", "NaN", 0),
        ("", "", 0),
        ("[" * 100_000, "[" * 100_000, 0),
        ("1" * 5000, "1" * 5000, 0),  # Python reads integers of at most 4300 digits
    ],
)
def test_json_match_compares_values_and_what_is_not_json_is_zero(answer, reference, score):
    assert json_match(answer, reference) == score
