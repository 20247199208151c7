"""Prompts from texts and from files in every format of training."""

import pytest

from peft_lightning.data import RowOptions
from peft_lightning.inference.prompts import read_prompts
from peft_lightning.messages import UserError


@pytest.fixture
def questions(tmp_path):
    (tmp_path / "questions.csv").write_text("ask,level\nwhy?,3\n")
    return str(tmp_path / "questions.csv")


def contents(prompts):
    return [[message["content"] for message in prompt.row.messages] for prompt in prompts]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"columns": {"prompt": "ask"}}, ["why?"]),
        ({"columns": {"prompt": "ask", "completion": "answer"}}, ["why?"]),
        ({"prompt": "{level}: {ask}"}, ["3: why?"]),
        ({"columns": {"prompt": "ask"}, "system_prompt": "S"}, ["S", "why?"]),
    ],
)
def test_rows_without_answers_are_read_as_the_options_say(questions, options, expected):
    [prompt] = prompts = read_prompts(None, questions, RowOptions(**options))
    assert contents(prompts) == [expected]
    assert prompt.record == {"ask": "why?", "level": "3"}
    assert prompt.where == f"{questions}:2"


def test_texts_are_prompts_as_they_are():
    texts = ["{ask}", '[{"role": "user"}]']
    assert contents(read_prompts(texts, None)) == [[text] for text in texts]
    assert contents(read_prompts(["a"], None, RowOptions(system_prompt="S"))) == [["S", "a"]]


def test_a_column_that_is_not_there_is_an_error(questions):
    with pytest.raises(UserError, match=r"prompt is 'aks', but .*; did you mean ask\?"):
        read_prompts(None, questions, RowOptions(columns={"prompt": "aks"}))
