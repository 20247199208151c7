"""The prompts of a training: kept as facts, and the same token ids wherever the adapter answers."""

import json

import pytest

from peft_lightning.data import PromptEncoder, PromptFormat
from peft_lightning.data.datamodule import SFTDataModule
from peft_lightning.data.options import RowOptions, TokenOptions
from peft_lightning.data.trained_prompts import common_format, use_prompt_format
from peft_lightning.inference.prompts import read_prompts
from peft_lightning.messages import UserError
from template_families import FAMILIES
from toy_tokenizers import CHATML, byte_tokenizer, gpt2_tokenizer

CHANGED_BY = {"kwargs": "qwen-3", "date": "smollm-3"}  # else any

VARIED = {  # data options away from their defaults, each of which changes a prompt below
    "kwargs": {"chat_template_kwargs": {"enable_thinking": False, "note": "N"}},
    "date": {"template_date": "2025-02-03"},
    "system": {"system_prompt": "Be <s>brief."},
    "prompt": {"prompt": "Q: {question}\n\n"},
    "tokens": {"special_tokens_in_text": "keep"},
    "merged": {"system": "merge_into_user", "system_prompt": "S"},
    "all": {
        **{"chat_template_kwargs": {"enable_thinking": False}, "system_prompt": "S"},
        **{"template_date": "2025-02-03", "special_tokens_in_text": "keep"},
        **{"prompt": "Q: {question}\n\n"},
    },
}


def trained(family, options, make, rows, tmp_path):
    """Return a data module with the rows of a training, after their setup."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = SFTDataModule(
        train=str(file), val_fraction=0, cache_dir=str(tmp_path / "cache"), shuffle=False, **options
    )
    data.tokenizer = FAMILIES[family].tokenizer(make)
    data.setup("fit")
    return data


def questions(family):
    return ["why so?\n\n", "hi", f"a{FAMILIES[family].eos}b"]


def rows_of(family, options):
    column = "question" if "prompt" in options else "prompt"
    return [{column: question, "completion": "B"} for question in questions(family)]


def prefixes(data):
    """Return the ids before the answer of each row."""
    dataset = data._splits["train"].parts[0]
    for i in range(len(dataset)):
        row = dataset[i]
        ids, in_loss = list(row["input_ids"]), [label != -100 for label in row["labels"]]
        yield [int(i) for i in ids[: in_loss.index(True)]]


def kept(data):
    """Return the prompt format as another program reads it from the adapter's folder."""
    facts = json.loads(json.dumps({"prompts": data.prompt_format.facts()}))
    return PromptFormat.of_folder(facts, "folder")


@pytest.mark.parametrize("make", [byte_tokenizer, gpt2_tokenizer])
@pytest.mark.parametrize("varied", VARIED)
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_generation_are_the_ids_before_an_answer_in_training(
    family, varied, make, tmp_path
):
    options = VARIED[varied]
    if family in ("gemma", "mistral-v1") and "system_prompt" in options:  # refuse system messages
        options = {**options, "system": "merge_into_user"}
    data = trained(family, options, make, rows_of(family, options), tmp_path)
    fresh = FAMILIES[family].tokenizer(make)
    encoder = PromptEncoder(fresh, kept(data))
    want = list(prefixes(data))
    assert [encoder.encode(question) for question in questions(family)] == want
    assert read_prompts(questions(family), None).encode(fresh, kept(data)) == want
    file = str(tmp_path / "rows.jsonl")
    assert read_prompts(None, file).encode(fresh, kept(data)) == want


@pytest.mark.parametrize("varied", VARIED)
def test_each_of_these_options_changes_a_prompt(varied, tmp_path):
    family = CHANGED_BY.get(varied, "chatml")
    data = trained(
        family, VARIED[varied], byte_tokenizer, rows_of(family, VARIED[varied]), tmp_path
    )
    plain = trained(family, {}, byte_tokenizer, rows_of(family, {}), tmp_path)
    for prompt_format in (PromptFormat(), plain.prompt_format):
        encoder = PromptEncoder(FAMILIES[family].tokenizer(), prompt_format)
        assert [encoder.encode(question) for question in questions(family)] != list(prefixes(data))


def test_a_template_of_a_file_is_kept_as_its_source_and_none_as_none(tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text(CHATML.replace("<|im_start|>", "<|im_start|>: "))
    data = trained(
        "chatml", {"chat_template": str(file)}, byte_tokenizer, rows_of("chatml", {}), tmp_path
    )
    file.unlink()
    encoder = PromptEncoder(FAMILIES["chatml"].tokenizer(), kept(data))
    assert [encoder.encode(q) for q in questions("chatml")] == list(prefixes(data))
    assert "of its own" in str(kept(data))
    data = trained(
        "chatml", {"chat_template": "none"}, byte_tokenizer, rows_of("chatml", {}), tmp_path
    )
    encoder = PromptEncoder(FAMILIES["chatml"].tokenizer(), kept(data))
    assert [encoder.encode(q) for q in questions("chatml")] == list(prefixes(data))


def test_a_date_is_kept_only_where_the_template_prints_one(tmp_path):
    assert not trained(
        "chatml", {}, byte_tokenizer, rows_of("chatml", {}), tmp_path
    ).prompt_format.facts()
    data = trained("smollm-3", {}, byte_tokenizer, rows_of("smollm-3", {}), tmp_path)
    assert data.prompt_format.facts() == {"template_date": "2024-07-26"}


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ("x", "folder: prompts must be an object, got 'x'"),
        ({"sytem_prompt": "x"}, "does not know: install a newer one"),
        ({"system_prompt": 3}, "folder: system_prompt of prompts cannot be 3"),
        ({"chat_template_kwargs": "x"}, "chat_template_kwargs of prompts cannot be 'x'"),
        ({"chat_template": "/etc/passwd"}, "must not name a file elsewhere"),
        ({"template_date": "tomorrow"}, "folder: template_date must be a date"),
        ({"reasoning": "dorp"}, "folder: reasoning must be .* did you mean drop"),
        ({"prompt": "Q: {"}, "folder: data.prompt 'Q: {'"),
    ],
)
def test_a_folder_that_says_something_else_is_an_error(prompts, said):
    with pytest.raises(UserError, match=said):
        PromptFormat.of_folder({"prompts": prompts}, "folder")


def test_options_that_are_given_win_and_variables_are_added():
    own = PromptFormat(
        chat_template_kwargs={"a": 1, "b": 2},
        system_prompt="S",
        prompt="{q}",
        template_date="2025-01-31",
    )
    given = {"chat_template_kwargs": {"b": 3}, "system_prompt": None, "template_date": "today"}
    assert own.with_given(given) == PromptFormat(
        chat_template_kwargs={"a": 1, "b": 3}, system_prompt="S", prompt="{q}"
    )
    assert own.with_given({"prompt": "", "system_prompt": ""}) == PromptFormat(
        chat_template_kwargs={"a": 1, "b": 2}, system_prompt="", template_date="2025-01-31"
    )


def test_a_data_module_takes_what_it_is_not_given():
    trained_with = PromptFormat(system_prompt="S", template_date="2025-01-31", system="drop")
    data = SFTDataModule(predict="x", system_prompt="T")
    assert use_prompt_format(data, trained_with) == "template_date 2025-01-31, system drop"
    assert data.row_options == RowOptions(system_prompt="T")
    assert data.token_options == TokenOptions(template_date="2025-01-31", system="drop")
    data = SFTDataModule(predict="x")
    assert use_prompt_format(data, trained_with, ["system", "template_date"]) == "system_prompt S"
    assert data.token_options == TokenOptions()
    assert use_prompt_format(SFTDataModule(predict="x"), PromptFormat()) == ""


def test_adapters_with_different_prompts_cannot_share_them():
    a, b = PromptFormat(), PromptFormat(system_prompt="S")
    assert common_format({"a": b, "b": b}) == b
    with pytest.raises(UserError, match=r"a and b .*the defaults; system_prompt S.*generate"):
        common_format({"a": a, "b": b})
