"""Prompts from texts and from files in every format of training."""

import pytest

from peft_lightning.data import PromptFormat, RowOptions
from peft_lightning.inference.prompts import read_prompts
from peft_lightning.messages import UserError


@pytest.fixture
def questions(tmp_path):
    (tmp_path / "questions.csv").write_text("ask,level\nwhy?,3\n")
    return str(tmp_path / "questions.csv")


def contents(prompts, **prompt_format):
    rows = prompts.rows(PromptFormat(**prompt_format))
    return [[message["content"] for message in row.messages] for row in rows]


@pytest.mark.parametrize(
    ("options", "prompt_format", "expected"),
    [
        ({"columns": {"prompt": "ask"}}, {}, ["why?"]),
        ({"columns": {"prompt": "ask", "completion": "answer"}}, {}, ["why?"]),
        ({"prompt": "{level}: {ask}"}, {}, ["3: why?"]),
        ({"columns": {"prompt": "ask"}}, {"system_prompt": "S"}, ["S", "why?"]),
        ({}, {"prompt": "{level}: {ask}"}, ["3: why?"]),
        ({"prompt": "{ask}!"}, {"prompt": "{level}: {ask}"}, ["why?!"]),
        ({"columns": {"prompt": "ask"}}, {"prompt": "{level}: {ask}"}, ["why?"]),
        ({"columns": {"prompt": "ask"}}, {"prompt": "{other}"}, ["why?"]),
    ],
)
def test_rows_without_answers_are_read_as_the_options_say(
    questions, options, prompt_format, expected
):
    prompts = read_prompts(None, questions, RowOptions(**options))
    assert contents(prompts, **prompt_format) == [expected]
    assert prompts.records == [{"ask": "why?", "level": "3"}]


def test_texts_are_prompts_as_they_are():
    texts = ["{ask}", '[{"role": "user"}]']
    assert contents(read_prompts(texts, None)) == [[text] for text in texts]
    assert contents(read_prompts(["a"], None), system_prompt="S") == [["S", "a"]]


def test_a_text_fills_a_template_of_one_column_and_is_the_whole_prompt_for_one_of_several():
    prompts = read_prompts(["why {x}?"], None)
    assert contents(prompts, prompt="Q: {question}\nA:") == [["Q: why {x}?\nA:"]]
    assert contents(prompts, prompt="{a} {b}") == [["why {x}?"]]
    assert prompts.fill(PromptFormat(prompt="Q: {question}"))
    assert not prompts.fill(PromptFormat(prompt="{a} {b}"))


def test_a_given_template_that_a_text_cannot_fill_is_an_error():
    with pytest.raises(UserError, match=r"'\{a\} \{b\}' has 2 columns.*--file"):
        read_prompts(["a"], None, RowOptions(prompt="{a} {b}"))


def test_a_column_that_is_not_there_is_an_error(questions):
    prompts = read_prompts(None, questions, RowOptions(columns={"prompt": "aks"}))
    with pytest.raises(UserError, match=r"prompt is 'aks', but .*; did you mean ask\?"):
        contents(prompts)
    prompts = read_prompts(None, questions, RowOptions(prompt="{aks}"))
    with pytest.raises(UserError, match=r"\{aks\}.*; did you mean ask\?"):
        contents(prompts)


def test_an_error_names_the_line(questions, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": 3')
    with pytest.raises(UserError, match=r"bad\.jsonl:2: "):
        read_prompts(None, str(tmp_path / "bad.jsonl"))
