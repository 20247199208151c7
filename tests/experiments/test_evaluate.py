"""Evaluation of runs row by row: against a definition in float64, kept, and of every kind."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from peft_lightning import CausalLMModule, Full, LoRA, PromptTuning, load_adapter
from peft_lightning.base_model import load_base_model
from peft_lightning.data import PromptFormat
from peft_lightning.experiments.compare.evaluate import Evaluation
from peft_lightning.experiments.compare.evaluated_model import EvaluationOptions
from peft_lightning.experiments.compare.questions import questions_of_rows
from peft_lightning.experiments.compare.row_losses import row_losses
from peft_lightning.experiments.compare.runs import find_runs
from peft_lightning.experiments.compare.validation_rows import RowReader, ValidationRows
from peft_lightning.kernels.attention import FLAT_ATTENTION
from peft_lightning.loss import CausalLMLoss
from peft_lightning.messages import UserError
from peft_lightning.training.general_text import general_text_loss, general_texts
from runs_to_compare import trained_runs
from tiny import tiny_model
from tiny_run import byte_tokenizer, fit, write_rows

OPTIONS = EvaluationOptions(max_new_tokens=6, device="cpu", forgetting=True)


class WithNorm(CausalLMModule):
    """Trains a norm of the base beside the adapter."""

    def configure_model(self):
        super().configure_model()
        self.model.model.norm.weight.requires_grad_(True)


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    """Two ranks with two seeds each, and runs of every kind that is evaluated in its own way."""
    root = tmp_path_factory.mktemp("compared")
    runs = trained_runs(base, root)
    rows, data = root / "rows.jsonl", {"val_fraction": 0.3, "cache_dir": str(root / "cache")}
    methods = {
        "prompt": PromptTuning(num_virtual_tokens=3),
        "full": Full(),
        "tokens": LoRA(r=2, new_tokens=["zz"]),
    }
    for name, adapter in methods.items():
        fit(base, rows, runs / name, adapter=adapter, data=data, max_steps=4)
    fit(base, rows, runs / "norm", module_class=WithNorm, data=data, max_steps=4)
    return runs


@pytest.fixture(scope="module")
def evaluated(folder):
    runs = find_runs([folder])
    for i, run in enumerate(runs):
        if run.name == "norm":  # as config.yaml of the command line names its class
            path = f"{WithNorm.__module__}.{WithNorm.__name__}"
            model = {"class_path": path, "init_args": run.section("model")}
            runs[i] = replace(run, options={**run.options, "model": model})
    return runs, *evaluate(runs)


def test_a_run_of_a_class_that_it_does_not_name_is_a_problem(folder):
    _, found = evaluate(find_runs([folder / "norm"]), answers=0)
    assert "model.model.norm.weight" in found["norm"].problem
    assert "was trained by a class of its own" in found["norm"].problem


def evaluate(runs, answers=3):
    reader = RowReader()
    rows = {run.name: reader.read(run) for run in runs}
    questions = questions_of_rows(rows[runs[0].name], answers)
    return rows, Evaluation(runs, rows, questions, OPTIONS).run()


def rows_of(sequences, rows=None, layout="flat"):
    """Return rows of given token ids, labelled behind the first third of each."""
    found = []
    for ids in sequences:
        ids = np.asarray(ids)
        weights = (np.arange(len(ids)) >= max(1, len(ids) // 3)).astype(np.float32)
        labels = np.where(weights, ids, -100)
        found.append({"input_ids": ids, "labels": labels, "loss_weights": weights})
    rows = np.arange(len(found)) if rows is None else np.asarray(rows)
    number = len(set(rows.tolist()))
    questions = [None] * number, [""] * number
    return ValidationRows(
        "given", found, rows, *questions, byte_tokenizer(), PromptFormat(), layout
    )


def by_definition(model, rows):
    """Return the summed loss, the weights and the hits of each row: one sequence at a time."""
    sums = np.zeros((3, len(rows)))
    for row, s in zip(rows.rows, rows.sequences, strict=True):
        ids = torch.from_numpy(s["input_ids"])[None]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0].double()
        for t in range(1, ids.shape[1]):
            weight, token = float(s["loss_weights"][t]), int(ids[0, t])
            sums[0, row] -= weight * float(F.log_softmax(logits[t - 1], -1)[token])
            sums[1, row] += weight
            sums[2, row] += weight * float(logits[t - 1].argmax() == token)
    return sums


def test_the_loss_on_general_text_is_that_which_runs_log(evaluated):
    """Passages have tokens of one kind only, so one run of each method is enough."""
    runs, _, found = evaluated
    for name, run in {None: None, **{run.name: run for run in runs}}.items():
        if name not in (None, runs[0].name, "prompt", "full"):
            continue
        if name == "full":
            model, adapter = load_base_model(str(run.checkpoint)), Full()
        else:
            model = load_base_model(runs[0].base_model, dtype="float32")
            adapter = None if run is None else load_adapter(model, run.checkpoint)
        tokenizer = byte_tokenizer()
        expected = general_text_loss(model, adapter or LoRA(), tokenizer)
        general = found[name].general
        assert len(general.nll) == len(general_texts())
        assert general.tokens.sum() == expected.tokens
        # float32: sums in another order
        assert general.mean == pytest.approx(expected.per_token, rel=1e-4)


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_losses_of_rows_are_those_of_one_row_at_a_time(layout):
    draw = np.random.default_rng(0)
    rows = rows_of([draw.integers(3, 100, n) for n in (5, 30, 9, 2, 17, 64)], layout=layout)
    rows.sequences[1]["loss_weights"][20:] *= 0.5
    model = tiny_model("llama", torch.float64)
    expected = by_definition(model, rows)
    found = row_losses(CausalLMLoss(model, LoRA()), rows) if layout == "padded" else None
    if found is None:
        model.set_attn_implementation(FLAT_ATTENTION)
        found = row_losses(CausalLMLoss(model, LoRA(), True), rows)
    # float64: a loss is a sum of some 60 terms of size 10
    assert found.nll == pytest.approx(expected[0], rel=1e-12)
    assert found.tokens.tolist() == expected[1].tolist()
    assert found.correct.tolist() == expected[2].tolist()


def test_a_row_of_several_sequences_is_one_row(base):
    rows = rows_of([[5, 6, 7, 8], [5, 6, 9], [3, 4, 5, 6, 7]], rows=[0, 0, 1])
    model = tiny_model("llama", torch.float64)
    found = row_losses(CausalLMLoss(model, LoRA()), rows_padded(rows))
    assert found.nll == pytest.approx(by_definition(model, rows)[0], rel=1e-12)
    assert found.tokens.tolist() == [3 + 2, 4]


def rows_padded(rows):
    return ValidationRows(
        *(rows.name, rows.sequences, rows.rows, rows.prompts, rows.references),
        *(rows.tokenizer, rows.prompt_format, "padded"),
    )


def test_each_run_has_the_validation_loss_that_it_has_logged(evaluated):
    runs, _, found = evaluated
    for run in runs:
        own = found[run.name].losses.mean
        assert own == pytest.approx(run.record.summary["best_val_loss"], rel=1e-5), run.name


def test_the_base_is_evaluated_as_it_was_before_training(evaluated, base):
    _, rows, found = evaluated
    first = next(iter(rows.values()))
    expected = by_definition(load_base_model(str(base)).double(), first)
    assert found[None].losses.nll == pytest.approx(expected[0], rel=1e-5)
    assert found[None].losses.tokens.tolist() == expected[1].tolist()


def test_all_methods_are_compared_on_the_same_tokens(evaluated):
    _, _, found = evaluated
    [tokens] = {tuple(e.losses.tokens) for e in found.values()}
    assert sum(tokens) > 0


def test_the_answers_are_those_of_generate(evaluated, folder, base):
    from peft_lightning.inference.load import load_inference_model

    runs, rows, found = evaluated
    for run in runs:
        if "seed1" in run.name or run.name == "norm":  # which is no adapter
            continue
        whole = run.name == "full"
        loaded = load_inference_model(None, {"a": str(run.checkpoint)}, dtype="float32")
        name = "base" if whole else "a"
        prompts = [p for p in rows[run.name].prompts if p][:3]
        ids = loaded.generate(name, prompts, 6)
        texts = [loaded.tokenizers[name].decode(i, skip_special_tokens=True).strip() for i in ids]
        assert list(found[run.name].answers) == texts, run.name


def test_prompts_and_right_answers_are_those_of_the_rows(evaluated, folder):
    _, rows, _ = evaluated
    written = {}
    for line in (folder.parent / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        written[row["prompt"].strip()] = row["completion"].strip()
    first = next(iter(rows.values()))
    assert len(first) == 12  # 30 % of 40
    for i in range(len(first)):
        text = first.prompt_text(i)
        assert text.endswith("<|im_start|>assistant\n")
        asked = text.split("user\n")[1].split("<|im_end|>")[0].strip()
        assert first.references[i] == written[asked]


def test_what_was_evaluated_is_not_evaluated_again(evaluated, monkeypatch):
    runs, _, found = evaluated
    monkeypatch.setattr(
        "peft_lightning.experiments.compare.evaluate.EvaluatedBase",
        lambda *args: pytest.fail("the base was loaded"),
    )
    monkeypatch.setattr(
        "peft_lightning.experiments.compare.evaluate.whole_model",
        lambda *args: pytest.fail("a whole model was loaded"),
    )
    _, again = evaluate(runs)
    assert again.keys() == found.keys()
    for name, one in found.items():
        assert again[name].answers == one.answers
        assert again[name].losses.nll.tolist() == one.losses.nll.tolist()


def test_another_checkpoint_is_evaluated_anew(evaluated, folder, tmp_path):
    _, _, found = evaluated
    shutil.copytree(folder / "r1-seed0", tmp_path / "run")
    checkpoint = tmp_path / "run/checkpoints/best.ckpt"
    shutil.rmtree(checkpoint)
    shutil.copytree(folder / "r4-seed0/checkpoints/best.ckpt", checkpoint)
    _, again = evaluate(find_runs([tmp_path / "run"]))
    assert again["run"].losses.nll == pytest.approx(found["r4-seed0"].losses.nll)


def test_a_run_that_does_not_fit_is_a_problem_and_stops_no_other(evaluated, folder, tmp_path):
    shutil.copytree(folder / "r1-seed0", tmp_path / "good")
    shutil.copytree(folder / "r1-seed0", tmp_path / "bad")
    shutil.rmtree(tmp_path / "good/evaluation")
    shutil.rmtree(tmp_path / "bad/evaluation")
    checkpoint = tmp_path / "bad/checkpoints/best.ckpt"
    (checkpoint / "SHA256SUMS").unlink()
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    config["target_modules"] = ["nowhere"]
    (checkpoint / "adapter_config.json").write_text(json.dumps(config))
    _, found = evaluate(find_runs([tmp_path]))
    assert found["good"].losses is not None
    assert found["bad"].losses is None
    assert "nowhere" in found["bad"].problem


def test_other_rows_can_be_given_for_all_runs(folder, tmp_path):
    file = write_rows(tmp_path / "other.jsonl", 9, seed=4)
    [run] = find_runs([folder / "r1-seed0"])
    rows = RowReader(str(file)).read(run)
    assert len(rows) == 9
    assert len(RowReader(str(file), most=4).read(run)) == 4
    assert rows.hash != RowReader().read(run).hash


def test_rows_that_are_gone_are_named_with_a_way_out(folder, tmp_path):
    [run] = find_runs([folder / "r1-seed0"])
    with pytest.raises(UserError, match=r"r1-seed0 cannot be read.*nowhere.jsonl.*--val FILE"):
        RowReader(str(tmp_path / "nowhere.jsonl")).read(run)


def test_runs_are_found_below_a_folder_and_named_apart(folder, tmp_path):
    assert [run.name for run in find_runs([folder])] == sorted(p.name for p in folder.iterdir())
    assert len(find_runs([folder, folder / "full"])) == 8
    with pytest.raises(UserError, match="no run is in"):
        find_runs([tmp_path])
    for name in ("a/run", "b/run"):
        shutil.copytree(folder / "full", tmp_path / name, ignore=shutil.ignore_patterns("*.ckpt"))
    runs = find_runs([tmp_path / "a/run", tmp_path / "b/run"])
    assert [run.name for run in runs] == ["a/run", "b/run"]
    assert runs[0].checkpoint is None
    assert "it has no checkpoint" in runs[0].status
