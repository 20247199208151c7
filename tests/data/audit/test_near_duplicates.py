"""Near duplicates, against the Jaccard index of the sets of shingles, written out."""

import random

import numpy as np
import pytest

from peft_lightning.data.audit.near_duplicates import (
    BINS,
    THRESHOLD,
    near_duplicates,
    signatures,
    similarity,
)
from peft_lightning.data.audit.shingles import LENGTH, TABLE_BITS, Texts, common_shingles, shingles

pytestmark = pytest.mark.slow

NOTHING = np.zeros(2**TABLE_BITS, dtype=bool)


def words(draw: random.Random, number: int) -> list[str]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(number)]


def shingle_set(text: str) -> set[str]:
    text = " ".join(text.lower().split())
    return {text[i : i + LENGTH] for i in range(len(text) - LENGTH + 1)}


def jaccard(one: str, other: str) -> float:
    a, b = shingle_set(one), shingle_set(other)
    return len(a & b) / len(a | b)


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    """3,000 texts of 8 to 120 words, each with a copy in which some words were replaced."""
    draw = random.Random(0)
    vocabulary = words(draw, 5000)
    found = []
    for _ in range(3000):
        text = draw.choices(vocabulary, k=draw.randint(8, 120))
        copy = list(text)
        for _ in range(draw.randint(0, len(text) // 4)):
            copy[draw.randrange(len(copy))] = draw.choice(vocabulary)
        found.append((" ".join(text), " ".join(copy)))
    return found


@pytest.fixture(scope="module")
def signed(pairs):
    return signatures(Texts.of([text for pair in pairs for text in pair]), NOTHING)


def test_the_shingles_are_the_pieces_of_eight_characters_without_case_and_runs_of_spaces():
    texts = ["Some TEXT  with\n\tspaces", "some text with spaces", "short", "another one", ""]
    hashes, index = shingles(Texts.of(texts))
    found = [set(hashes[index == i].tolist()) for i in range(len(texts))]
    assert found[0] == found[1]
    for i, text in enumerate(texts):  # distinct pieces, distinct hashes
        assert len(found[i]) == len(shingle_set(text))
    assert not found[1] & found[3]


def test_the_share_of_equal_bins_is_the_jaccard_index_up_to_the_error_of_64_draws(pairs, signed):
    estimated = similarity(signed[::2], signed[1::2])
    true = np.array([jaccard(*pair) for pair in pairs])
    error = estimated - true
    # the standard deviation of the mean of 64 draws is at most 0.5 / 8; twice that for short texts,
    # whose bins are not independent, and the mean over 3,000 pairs a fiftieth of that
    assert abs(error.mean()) < 4 * 2 * 0.5 / 8 / np.sqrt(len(pairs))
    assert error.std() < 0.5 / 8


def test_near_duplicates_are_found_and_others_are_not(pairs, signed):
    found = near_duplicates(signed)[1::2] == np.arange(0, len(signed), 2)
    true = np.array([jaccard(*pair) for pair in pairs])
    near, far = true >= THRESHOLD + 0.1, true < THRESHOLD - 0.2
    assert near.sum() > 500
    assert far.sum() > 300
    assert found[near].mean() > 0.99  # recall
    assert found[far].sum() == 0  # precision
    border = (true >= THRESHOLD) & ~near
    assert found[border].mean() > 0.75


def test_unrelated_texts_have_no_partner(pairs):
    signature = signatures(Texts.of([text for text, _ in pairs]), NOTHING)
    assert (near_duplicates(signature) == -1).all()


def test_the_partner_is_the_earliest_text(pairs):
    text = pairs[0][0]
    texts = ["something else entirely, of no use", text, text + "!", text, "short"]
    assert near_duplicates(signatures(Texts.of(texts), NOTHING)).tolist() == [-1, -1, 1, 1, -1]


def test_texts_without_a_shingle_are_like_nothing():
    signature = signatures(Texts.of(["", "short", "short", "1234567"]), NOTHING)
    assert signature.shape == (4, BINS)
    assert not signature.any()
    assert (near_duplicates(signature) == -1).all()


def test_an_instruction_that_many_rows_share_makes_them_no_duplicates():
    draw = random.Random(1)
    instruction = " ".join(words(draw, 60))
    texts = [f"{instruction}: {' '.join(words(draw, 8))}" for _ in range(200)]
    texts.append(texts[5] + " now")
    assert jaccard(texts[0], texts[1]) > THRESHOLD
    common = common_shingles(texts)
    partner = near_duplicates(signatures(Texts.of(texts), common))
    assert partner.tolist() == [-1] * 200 + [5]
    assert (near_duplicates(signatures(Texts.of(texts), NOTHING)) >= 0).sum() > 150


@pytest.mark.parametrize(
    ("number", "sharing", "is_common"), [(2, 2, 0), (5, 3, 1), (200, 20, 0), (200, 21, 1)]
)
def test_a_shingle_is_common_if_a_tenth_of_the_rows_have_it_or_half_of_a_few(
    number, sharing, is_common
):
    draw = random.Random(2)
    texts = [
        f"{'the shared words ' * (i < sharing)}{' '.join(words(draw, 5))}" for i in range(number)
    ]
    hashes, _ = shingles(Texts.of(["the shared words "]))
    common = common_shingles(texts)[hashes >> np.uint32(32 - TABLE_BITS)]
    assert common.all() if is_common else not common.any()


def test_a_row_of_common_shingles_alone_is_still_compared():
    text = "the very same sentence in each of the rows of this file"
    texts = [text] * 30
    partner = near_duplicates(signatures(Texts.of(texts), common_shingles(texts)))
    assert partner.tolist() == [-1] + [0] * 29
