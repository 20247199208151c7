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
        (["o"], "PARTS is missing; usage: x combine OUT PARTS ..."),
        (["o", "a=1", "--rnk", "3"], "did you mean '--rank'"),
        (["o", "a=1", "--rank", "x"], "--rank must be int or null, got 'x'"),
        (["o", "a=1", "--rank", "3", "--rank=4"], "--rank is given several times: 3, 4; leave one"),
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


def look(data: str | None = None, /, *fit: str, rows: int = 5, json: bool | str = False) -> None:
    """Look at data.

    Args:
        data: The data.
        fit: Options of fit.
        rows: How many.
        json: As JSON, or its file.
    """
    SEEN.append((data, fit, rows, json))


@pytest.mark.parametrize(
    ("args", "seen"),
    [
        ([], (None, (), 5, False)),
        (["d"], ("d", (), 5, False)),
        (["--config", "c", "--rows", "2"], (None, ("--config", "c"), 2, False)),
        (["--config", "c", "d", "--x=1"], ("d", ("--config", "c", "--x=1"), 5, False)),
        (["d", "--json", "--x", "y"], ("d", ("--x", "y"), 5, True)),
        (["--json", "d"], ("d", (), 5, True)),
        (["--json", "out.json", "d"], ("d", (), 5, "out.json")),
        (["--json=out.json"], (None, (), 5, "out.json")),
    ],
)
def test_a_word_may_be_left_out_and_options_of_fit_are_passed_on_after_the_words(args, seen):
    run_function(look, args, "x look")
    assert SEEN.pop() == seen


def test_the_help_shows_which_word_may_be_left_out(capsys):
    run_function(look, ["--help"], "x look")
    assert "x look [DATA] FIT ..." in capsys.readouterr().out
