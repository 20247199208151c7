"""Answers to validation and test rows: their scores, their file, what trains as without them."""

import dataclasses
import itertools
import json

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging

from peft_lightning import CausalLMModule, LoRA, PromptTuning, SFTDataModule
from peft_lightning.messages import UserError
from peft_lightning.metrics import corpus_score
from peft_lightning.training.checkpoint import AdapterCheckpoint
from peft_lightning.training.label_likelihood import label_ids, label_log_likelihoods
from peft_lightning.training.schedules import Constant
from processes import in_processes, outcome
from processes import run as run_here
from tiny_run import byte_tokenizer, fit, write_base

METRICS = ["exact_match", "chrf", "contains", "likelihood_accuracy"]


def write(file, completions, first=0):
    rows = [
        {"prompt": f"say {first + i}", "completion": text} for i, text in enumerate(completions)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return {
        "train": write(folder / "train.jsonl", ["no"] * 20 + ["yes"] * 4),
        "a": write(folder / "a.jsonl", ["no", "yes", "no"], 30),
        "b": write(folder / "b.jsonl", ["yes", "no"], 40),
    }


def trained(base, files, root, metrics=METRICS, adapter=None, module=None, **options):
    scored = {"metrics": metrics, "predict_max_new_tokens": 6, **(module or {})}
    return fit(
        base, [files["train"]], root, adapter=adapter or LoRA(r=8, lora_dropout=0.1),
        module={"learning_rate": 1.5e-2, "lr_schedule": Constant(), **scored},
        data={"val": {"a": files["a"], "b": files["b"]}, "batch_size": 4}, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory, base, files):
    root = tmp_path_factory.mktemp("answers") / "run"
    best = AdapterCheckpoint(monitor="val/exact_match")
    stop = EarlyStopping("val/exact_match", patience=5, mode="max")
    trainer = trained(base, files, root, callbacks=[best, stop], max_epochs=6)
    return trainer, root


def lines(root, name="val"):
    return [json.loads(line) for line in (root / f"evaluation/{name}.jsonl").open()]


def test_each_row_is_kept_with_its_place_prompt_reference_and_scores(run):
    trainer, root = run
    rows = lines(root)
    assert [(row["source"], row["row"]) for row in rows] == [
        *(("a", i) for i in (1, 2, 3)), *(("b", i) for i in (1, 2)),
    ]  # fmt: skip
    assert [row["reference"] for row in rows] == ["no", "yes", "no", "yes", "no"]
    number = "<|im_start|>user\nsay 31<|im_end|>\n<|im_start|>assistant\n"
    assert rows[1]["prompt"] == number
    assert rows[1]["file"].endswith("a.jsonl")
    module, tokenizer = trainer.lightning_module, byte_tokenizer()
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    assert [row["answer"] for row in rows] == module.generate(prompts, 6)
    for row in rows:
        assert row["scores"]["exact_match"] == (row["answer"].strip() == row["reference"])
        assert row["scores"]["likelihood_accuracy"] == (row["label"] == row["reference"])
        assert row["step"] == trainer.global_step


def test_the_logged_values_are_the_scores_of_all_rows_and_of_each_source(run):
    trainer, root = run
    found = {name: value.item() for name, value in trainer.callback_metrics.items()}
    for source in ("", "a", "b"):
        rows = [row for row in lines(root) if source in ("", row["source"])]
        end = f"/{source}" if source else ""
        answers = [row["answer"] for row in rows]
        for name in METRICS[:3]:
            expected = corpus_score(name, answers, [row["reference"] for row in rows])
            assert found[f"val/{name}{end}"] == pytest.approx(expected)
        hits = sum(row["label"] == row["reference"] for row in rows) / len(rows)
        assert found[f"val/likelihood_accuracy{end}"] == pytest.approx(hits)
        most = max(map(answers.count, answers)) / len(rows)
        assert found[f"val/most_frequent_answer{end}"] == pytest.approx(most)


def test_a_model_that_always_answers_alike_is_seen(run):
    """20 of 24 training rows say no: so does the model, whatever it is asked."""
    found = run[0].callback_metrics
    assert found["val/exact_match"] == pytest.approx(3 / 5)
    assert found["val/most_frequent_answer"] == 1
    assert found["val/most_frequent_label"] == 1
    assert found["val/token_accuracy"] > 0.7  # which docs/metrics.md warns of


def test_the_best_checkpoint_and_an_early_stop_follow_a_metric(run):
    trainer, root = run
    assert trainer.checkpoint_callback.monitor == "val/exact_match"
    assert trainer.checkpoint_callback.best_model_score == pytest.approx(3 / 5)
    assert (root / "checkpoints/best.ckpt").is_dir()
    assert trainer.early_stopping_callback.best_score == pytest.approx(3 / 5)


def test_training_is_the_same_to_the_bit_with_metrics_and_without(run, base, files, tmp_path):
    trainer, _ = run
    epochs = trainer.current_epoch
    plain = trained(base, files, tmp_path / "run", metrics=None, max_epochs=epochs)
    expected = plain.lightning_module.state_dict()
    found = trainer.lightning_module.state_dict()
    assert not (tmp_path / "run/evaluation").exists()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_test_rows_are_answered_too_and_no_more_than_metric_rows(run, files, tmp_path):
    module = run[0].lightning_module
    data = SFTDataModule(test=files["a"], batch_size=2, cache_dir=str(tmp_path))
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    before, module.answer_options = module.answer_options, replaced(module, rows=2)
    try:
        (found,) = trainer.test(module, data, verbose=False)
    finally:
        module.answer_options = before
    rows = lines(tmp_path, "test")
    assert [row["row"] for row in rows] == [1, 2]
    assert "source" not in rows[0]
    assert found["test/exact_match"] == sum(r["scores"]["exact_match"] for r in rows) / 2


def replaced(module, **fields):
    return dataclasses.replace(module.answer_options, **fields)


# ---- classification by likelihood --------------------------------------------------------------


@pytest.mark.parametrize("layout", ["flat", "padded"])
@pytest.mark.parametrize("adapter", [LoRA(r=2, init_lora_weights=False), PromptTuning(3)], ids=str)
def test_the_likelihood_of_a_label_is_the_product_of_its_tokens(tmp_path, files, layout, adapter):
    base = write_base(tmp_path / "base", dtype=torch.float64)
    torch.manual_seed(0)
    module = CausalLMModule(str(base), adapter)
    data = SFTDataModule(val=files["a"], layout=layout, cache_dir=str(tmp_path))
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = L.Trainer(**options, precision="64-true")
    trainer.validate(module, data, verbose=False)
    prompts = [row.prompt for row in data.answer_rows("val")]
    labels = [[50, 51, 2], [50, 2], [60, 61, 62, 63, 2]]
    pad = 0 if layout == "padded" else None
    found = label_log_likelihoods(module, prompts, labels, pad_id=pad)
    model, virtual = module.model, getattr(adapter, "num_virtual_tokens", 0)
    for of_prompt, prompt in zip(found, prompts, strict=True):
        for value, label in zip(of_prompt, labels, strict=True):
            ids = torch.tensor([[*prompt, *label]])
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            with torch.no_grad():
                logits = model(**module.adapter.prepare_inputs(model, inputs)).logits[0]
            first = virtual + len(prompt) - 1
            rows = logits[first : first + len(label)].log_softmax(-1)
            assert value == pytest.approx(sum(rows[i, t].item() for i, t in enumerate(label)))


def test_labels_end_as_the_answers_of_the_rows_do():
    tokenizer = byte_tokenizer()

    def ids(text):
        return tokenizer(text)["input_ids"]

    answers = [("no", ids(" no<|im_end|>")), ("yes", ids(" yes<|im_end|>"))]
    found = label_ids(tokenizer, ["yes", "maybe"], answers)
    assert found == [ids(" yes<|im_end|>"), ids(" maybe<|im_end|>")]


def test_of_labels_the_sum_or_the_mean_decides(run, tmp_path, files):
    """The sum of a longer label has more factors below 1."""
    module = run[0].lightning_module
    before = module.answer_options
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    data = SFTDataModule(val=files["a"], cache_dir=str(tmp_path))
    long = "no no no no no no no no"
    expected = {}
    try:
        for score in ("sum", "mean"):
            module.answer_options = replaced(
                module, metrics=("likelihood_accuracy",), label_score=score,
                labels=("no", "yes", long),
            )  # fmt: skip
            trainer.validate(module, data, verbose=False)
            expected[score] = [row["label"] for row in lines(tmp_path)]
    finally:
        module.answer_options = before
    rows = data.answer_rows("val")
    texts = [("no", rows[0].answer), ("yes", rows[1].answer)]
    ids = label_ids(byte_tokenizer(), ["no", "yes", long], texts)
    values = label_log_likelihoods(module, [row.prompt for row in rows], ids)
    for score, found in expected.items():
        best = [
            max(range(3), key=lambda i: of[i] / (len(ids[i]) if score == "mean" else 1))
            for of in values
        ]
        assert found == [("no", "yes", long)[i] for i in best]


# ---- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["exact"]}, r"no metric exact; .*did you mean exact_match\?"),
        ({"metrics": "f1"}, r"model\.metrics is a list of names, got 'f1': give \['f1'\]"),
        ({"labels": ["a", "b"]}, "add it to model.metrics"),
        ({"metrics": ["likelihood_accuracy"], "labels": ["a", "a "]}, r"model.labels has 1:"),
        ({"metric_rows": -1}, "metric_rows must be 0, for all rows, or more, got -1"),
        ({"label_score": "max"}, "label_score must be sum or mean, got 'max'"),
    ],
)
def test_a_wrong_option_is_named(base, options, message):
    with pytest.raises(UserError, match=message):
        CausalLMModule(str(base), **options)


def validated(base, folder, completions, data=None, **options):
    file = write(folder / "rows.jsonl", completions)
    module = CausalLMModule(str(base), LoRA(r=2), **{"predict_max_new_tokens": 4, **options})
    datamodule = SFTDataModule(**{"val": file, "cache_dir": str(folder), **(data or {})})
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=folder
    )
    return trainer.validate(module, datamodule, verbose=False)


LIKELIHOOD = {"metrics": ["likelihood_accuracy"]}


@pytest.mark.parametrize(
    ("completions", "options", "message"),
    [
        (list(map(str, range(101))), {**LIKELIHOOD, "metric_rows": 0}, r"101 different answers"),
        (["no", "no"], LIKELIHOOD, r"has 1: give all of them as model\.labels"),
        (["no", "yes"], {**LIKELIHOOD, "labels": ["no", "si"]}, r"row 2: its answer 'yes' is none"),
        (
            ["no"],
            {"metrics": ["f1"], "predict_max_new_tokens": 250},
            r"row 1: its prompt has 24 tokens, and with model\.predict_max_new_tokens 250 .* 256 "
            r"positions: set it to 232 or less",
        ),
        (
            ["no"],
            {"metrics": ["f1"], "data": {"train_on": "all"}},
            r"row 1: all of it is in the loss",
        ),
    ],
    ids=["many labels", "one label", "another answer", "positions", "no prompt"],
)
def test_rows_that_cannot_be_scored_so_are_refused_before_anything_is_computed(
    base, tmp_path, completions, options, message
):
    with pytest.raises(UserError, match=message):
        validated(base, tmp_path, completions, **options)


def test_a_run_without_validation_rows_cannot_score_them(base, files, tmp_path):
    with pytest.raises(UserError, match=r"model\.metrics are of val rows, and there are none"):
        fit(
            base, [files["a"]], tmp_path / "run", module={"metrics": ["f1"]},
            data={"val_fraction": 0},
        )  # fmt: skip


def test_rows_that_are_cut_are_counted(base, tmp_path, caplog):
    long = {"max_length": 40, "truncation": "truncate"}
    validated(base, tmp_path, ["no", "yes " * 20, "n" * 60], data=long, metrics=["rouge1"])
    assert "the answers of 2 of 3 rows are cut at data.max_length 40, and are compared" in (
        caplog.text
    )
    assert [len(row["reference"]) for row in lines(tmp_path)] == [2, 15, 16]


def test_the_reference_is_the_last_answer_in_the_loss(base, tmp_path):
    turns = ["first", "one", "second", "두 번째"]
    roles = itertools.cycle(["user", "assistant"])
    messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": messages}))
    validated(base, tmp_path, ["x"], data={"val": str(tmp_path / "chat.jsonl")}, metrics=["rougeL"])
    (row,) = lines(tmp_path)
    assert row["reference"] == "두 번째"
    assert row["prompt"].endswith("one<|im_end|>\n<|im_start|>user\nsecond<|im_end|>\n"
                                  "<|im_start|>assistant\n")  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_processes_share_the_rows_and_have_the_values_of_one(tmp_path, files):
    base = write_base(tmp_path / "gpt2", "gpt2", torch.float64)
    scores = ["chrf", "contains", "likelihood_accuracy"]
    plain = {
        "base": str(base), "rows": files["train"],
        "module": {"metrics": scores, "predict_max_new_tokens": 3},
        "data": {"val": {"a": files["a"], "b": files["b"]}, "batch_size": 4},
    }  # fmt: skip
    sharded = {
        **plain, "trainer": {"strategy": "fsdp2"},
        "module": {"metrics": scores[:2], "predict_max_new_tokens": 3},
    }  # fmt: skip
    in_processes(2, tmp_path / "two", {"ddp": plain, "fsdp2": sharded})
    one = {**plain, "data": {**plain["data"], "batch_size": 8}}
    run_here(tmp_path / "one" / "plain", one, 1)
    expected = outcome(tmp_path / "one", "plain")["metrics"]
    assert {"val/chrf/a", "val/contains", "val/likelihood_accuracy/b"} <= expected.keys()
    assert 0 < expected["val/most_frequent_answer"] < 1
    for rank in (0, 1):
        found = outcome(tmp_path / "two", "ddp", rank)["metrics"]
        assert found == pytest.approx(expected, rel=1e-6)
        of_shards = outcome(tmp_path / "two", "fsdp2", rank)["metrics"]
        assert of_shards == pytest.approx({n: expected[n] for n in of_shards}, rel=1e-6)
        assert "val/chrf/b" in of_shards
    kept = [lines(tmp_path / where / "run") for where in ("one/plain", "two/ddp", "two/fsdp2")]
    answers = [[row["answer"] for row in rows] for rows in kept]
    assert answers[0] == answers[1] == answers[2]


def test_a_resumed_run_is_the_same_to_the_bit(run, base, files, tmp_path):
    trainer, _ = run
    trained(base, files, tmp_path / "run", max_epochs=2)
    last = str(tmp_path / "run/checkpoints/last.ckpt")
    again = trained(base, files, tmp_path / "run", max_epochs=6, ckpt_path=last)
    found = again.lightning_module.state_dict()
    expected = trainer.lightning_module.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert lines(tmp_path / "run") == lines(run[1])


def test_rows_are_answered_above_a_cache_of_hidden_states_and_by_virtual_tokens(
    base, files, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = {}
    for cached in (False, True):
        root = tmp_path / str(cached) / "run"
        adapter = LoRA(r=8, layers_to_transform=[1])
        module = {"cache_hidden_states": cached, "metric_rows": 2}
        trained(base, files, root, adapter=adapter, module=module, max_epochs=1)
        found[cached] = lines(root)
    assert found[True] == found[False]
    assert [row["row"] for row in found[True]] == [1, 2, 1, 2]
    trained(base, files, tmp_path / "prompt/run", adapter=PromptTuning(3), max_epochs=1)
    assert len(lines(tmp_path / "prompt/run")) == 5


class Watched(CausalLMModule):
    """Keeps the weights that the validation loss is of, and those that answer."""

    validated: torch.Tensor
    answered: torch.Tensor

    def weights(self):
        return torch.cat([p.detach().flatten() for p in self.trainable_parameters()])

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.validated = self.weights()
        super().validation_step(batch, batch_idx, dataloader_idx)

    def generate(self, *args, **options):
        self.answered = self.weights()
        return super().generate(*args, **options)


def test_averaged_weights_answer_where_the_validation_loss_is_theirs(base, files, tmp_path):
    average = EMAWeightAveraging(decay=0.5)
    trainer = trained(
        base, files, tmp_path / "run", ["f1"], module_class=Watched, callbacks=[average],
        max_steps=4, val_check_interval=2,
    )  # fmt: skip
    module = trainer.lightning_module
    assert torch.equal(module.answered, module.validated)
    assert average._average_model.n_averaged > 0
