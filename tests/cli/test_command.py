"""Commands of our own: words, flags and options from a function's signature."""

import pytest

from peft_lightning.cli.command import run_function

SEEN = []


def combine(out: str, /, *parts: str, rank: int | None = None, json: bool = False) -> None:
    """Combine parts.

    Args:
        out: The folder to write.
        parts: PATH=WEIGHT of each.
        rank: The rank.
        json: As JSON.
    """
    SEEN.append((out, parts, rank, json))


@pytest.mark.parametrize(
    "args",
    [
        ["o", "a=1", "b=-2", "--rank", "3", "--json"],
        ["--json", "o", "a=1", "--rank=3", "b=-2"],
        ["--rank", "3", "--json", "true", "o", "a=1", "b=-2"],
    ],
)
def test_words_and_options_come_in_any_order(args):
    run_function(combine, args, "x combine")
    assert SEEN.pop() == ("o", ("a=1", "b=-2"), 3, True)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["o"], "too few words; usage: x combine OUT PARTS ..."),
        (["o", "a=1", "--rnk", "3"], "did you mean '--rank'"),
        (["o", "a=1", "--rank", "x"], "--rank must be int or null, got 'x'"),
        (["o", "a=1", "--json", "b=1", "--rank"], "--rank must be int or null, got no value"),
    ],
)
def test_a_mistake_is_named(args, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        run_function(combine, args, "x combine")


def test_a_mistake_beside_an_option_that_may_be_given_several_times_is_the_one_named():
    def answer(adapter: list[str] | None = None, top_p: float = 1.0) -> None:
        SEEN.append(adapter)

    run_function(answer, ["--adapter", "a=x", "--adapter", "b"], "x answer")
    assert SEEN.pop() == ["a=x", "b"]
    with pytest.raises(ValueError, match=r"'--topp'; did you mean '--top_p'"):
        run_function(answer, ["--adapter", "a=x", "--topp", "1"], "x answer")
    with pytest.raises(ValueError, match="--top_p must be float, got 'q'"):
        run_function(answer, ["--adapter", "a=x", "--top_p", "q"], "x answer")


def test_the_help_names_words_and_options(capsys):
    run_function(combine, ["--help"], "x combine")
    text = capsys.readouterr().out
    for part in ("x combine OUT PARTS ...", "OUT: The folder to write", "--rank", "The rank."):
        assert part in text
