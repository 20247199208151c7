"""Suggestions for a misspelt name, and the check of an option that has fixed choices."""

import pytest

from peft_lightning.messages import check_choice, did_you_mean, join_or, printable


@pytest.mark.parametrize(
    ("wrong", "right", "hint"),
    [
        ("q_prj", ["k_proj", "q_proj"], "; did you mean q_proj?"),
        ("LORA", ["LoRA", "IA3"], "; did you mean LoRA?"),  # case is ignored
        ("4", ["4bit", "8bit"], "; did you mean 4bit?"),  # too short to be similar; begins it
        ("VOCAB", ["TEXT", "SAMPLE_VOCAB"], "; did you mean SAMPLE_VOCAB?"),  # ends it
        (["q_prj", "k_prj"], ["k_proj", "q_proj"], "; did you mean q_proj, k_proj?"),
        (["q_prj", "zzz"], ["k_proj", "q_proj"], "; did you mean q_proj?"),
        ("zzz", ["k_proj", "q_proj"], ""),
        ("", ["k_proj"], ""),
    ],
)
def test_the_hint_names_what_was_meant_and_nothing_if_nothing_is_similar(wrong, right, hint):
    assert did_you_mean(wrong, right) == hint


def test_several_suggestions_are_alternatives_written_as_the_user_should_write_them():
    names = ["train.jsonl", "train2.jsonl", "val.json"]
    hint = did_you_mean("trian.jsonl", names, most=2, show="data/{}".format)
    assert hint == "; did you mean data/train.jsonl or data/train2.jsonl?"


@pytest.mark.parametrize(
    ("names", "text"), [([], ""), (["a"], "a"), (["a", "b"], "a or b"), ("abc", "a, b or c")]
)
def test_alternatives_are_joined_by_commas_and_or(names, text):
    assert join_or(names) == text


@pytest.mark.parametrize(
    ("value", "end"),
    [
        ("of", r"got 'of'; did you mean off\?$"),
        (0, "got 0$"),
        (None, "got None$"),
        ([], r"got \[\]$"),
    ],
)
def test_a_wrong_choice_is_refused_with_all_choices_what_was_given_and_the_nearest(value, end):
    check_choice("switch", "on", ("on", "off"))
    with pytest.raises(ValueError, match=f"^switch must be on or off, {end}"):
        check_choice("switch", value, ("on", "off"))


def test_what_a_terminal_would_obey_is_shown_and_newlines_stay():
    assert printable("a\x1b[2Jb\x07\n한국어 é\x9b") == "a\\x1b[2Jb\\x07\n한국어 é\\x9b"
