"""predict compares its answers with those that the rows have, and says how they score."""

import json

import lightning as L
import pytest

from cli_driver import drive
from peft_lightning import CausalLMModule, LoRA, SFTDataModule
from peft_lightning.cli.scored_predictions import ScoredPredictions
from peft_lightning.metrics import row_scores

MIXED = [
    {"prompt": "a", "completion": "yes"},
    {"prompt": "b"},
    {"prompt": "c", "completion": "no " * 900},  # longer than data.max_length
    {"prompt": "d", "completion": ""},
    {"prompt": "e", "completion": "x", "weight": 0},
]
CHAT = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ]
    },
]


def write(file, rows):
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


@pytest.fixture(scope="module")
def ran(tmp_path_factory, base):
    """A folder, and (status, output, errors) of predict with a LoRA and without."""
    from peft_lightning.adapters import save_adapter
    from peft_lightning.base_model import base_fingerprint, load_base_model

    user = tmp_path_factory.mktemp("user")
    model, adapter = load_base_model(str(base)), LoRA(r=2)
    facts = {"base_fingerprint": base_fingerprint(model)}
    adapter.attach(model)
    save_adapter(adapter, model, user / "a", facts)
    write(user / "mixed.jsonl", MIXED)
    write(user / "json.jsonl", [{"prompt": "a", "completion": '{"k": [1]}'}] * 2)
    write(user / "alone.jsonl", [{"prompt": "a"}])
    common = [
        *["predict", "--model.base_model", str(base), "--trainer.accelerator", "cpu"],
        *["--model.predict_max_new_tokens", "3", "--data.cache_dir", "cache", "--data.predict"],
    ]

    def line(rows, folder, *options):
        return [*common, rows, "--trainer.default_root_dir", folder, *options]

    both = ["--adapter", "a=a", "--adapter", "b=a"]
    lines = {
        "mixed": line("mixed.jsonl", "mixed", "--adapter", "a"),
        "json": line("json.jsonl", "json", *both),
        "named": line(
            "json.jsonl", "named", "--adapter", "a",
            "--model.metrics", "[contains,chrf,likelihood_accuracy]",
        ),
        "alone": line("alone.jsonl", "alone", "--adapter", "a"),
    }  # fmt: skip
    return user, dict(zip(lines, drive(user, list(lines.values())), strict=True))


def answered(user, name):
    return [json.loads(line) for line in (user / name / "predictions.jsonl").open()]


def test_the_table_has_the_rows_with_an_answer_of_their_own(ran):
    user, results = ran
    status, output, errors = results["mixed"]
    assert status == 0, errors
    rows = answered(user, "mixed")
    assert [i for i, row in enumerate(rows) if "prediction_scores" in row] == [0, 2]
    for row in (rows[0], rows[2]):
        assert row["prediction_scores"] == {
            name: row_scores(name, [row["prediction"]], [row["completion"]])[0]
            for name in ("exact_match", "f1", "rougeL")
        }
    said = "compared with the answers that 2 of 5 rows have:\nexact_match           0.000\n"
    assert said in output
    assert "the most frequent answer, 100.0%: " in output


def test_each_adapter_has_a_column_and_json_answers_a_metric(ran):
    _, output, errors = ran[1]["json"]
    assert "compared with the answers that 2 of 2 rows have:\n" in output, errors
    head, *table = output.split("rows have:\n")[1].splitlines()
    assert head.split() == ["a", "b"]
    names = [line.split("  ")[0] for line in table[:5]]
    assert names == ["exact_match", "json_match", "f1", "rougeL", "most frequent answer"]


def test_the_metrics_can_be_named(ran):
    user, results = ran
    status, output, errors = results["named"]
    assert status == 0, errors
    assert list(answered(user, "named")[0]["prediction_scores"]) == ["contains", "chrf"]
    assert "likelihood_accuracy is computed by validate and test" in output


def test_without_answers_at_hand_nothing_is_said(ran):
    user, results = ran
    status, output, errors = results["alone"]
    assert status == 0, errors
    assert output.strip() == ""
    assert "prediction_scores" not in answered(user, "alone")[0]


def test_a_chat_that_ends_with_a_question_has_no_answer_at_hand(base, tmp_path):
    module = CausalLMModule(str(base), LoRA(r=2), predict_max_new_tokens=2)
    data = SFTDataModule(
        predict=write(tmp_path / "c.jsonl", CHAT), train_on="all", cache_dir=str(tmp_path)
    )
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    answers = [answer for batch in trainer.predict(module, data) for answer in batch]
    assert [ids is None for ids in data.predict_references] == [False, True]
    scored = ScoredPredictions(module, data, answers)
    assert scored._references == {0: "b"}
    assert scored.table().startswith("compared with the answers that 1 of 2 rows have:")
