"""``plan``: its numbers are those of the run, and it writes nothing into the run's folder."""

import csv
import json

import pytest
import yaml

from cli_driver import drive
from peft_lightning.commands.plan import _measured_apart
from peft_lightning.messages import RunError
from tiny_run import write_rows

RUNS = {
    "plain": {"trainer": {"max_epochs": 2}, "data": {"val": "{val}"}},
    "accumulated": {
        "trainer": {"max_epochs": 3, "accumulate_grad_batches": 4, "limit_train_batches": 5},
        "data": {"batch_size": 3, "val": "{val}"},
    },
    "max_steps": {
        "trainer": {"max_epochs": 3, "max_steps": 7, "val_check_interval": 2},
        "model": {
            "adapter": {"class_path": "PromptTuning", "init_args": {"num_virtual_tokens": 3}}
        },
    },
    "tokens_per_batch": {
        "trainer": {"max_epochs": 2, "check_val_every_n_epoch": 2},
        "data": {"tokens_per_batch": 160, "batch_size": 1},
        "model": {"adapter": "Full"},
    },
    "several_sources": {
        "trainer": {"max_epochs": 1},
        "data": {"train": ["{rows}", "{more}"], "val": {"a": "{val}", "b": "{more}"}},
    },
    "cut_rows": {
        "trainer": {"max_epochs": 1},
        "data": {"max_length": 60, "truncation": "truncate", "val_fraction": 0},
    },
    "left_out": {"trainer": {"max_epochs": 1}, "data": {"max_length": 60, "val_fraction": 0}},
}


def merged(a, b):
    """Return the mapping ``a`` with ``b`` over it, mappings within them alike."""
    return {
        **a,
        **{
            k: merged(a.get(k), v) if isinstance(v, dict) and isinstance(a.get(k), dict) else v
            for k, v in b.items()
        },
    }


def files_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.fixture(scope="module")
def found(base, rows, tmp_path_factory):
    """Of each run its plan, what was in its folder after it, its summary and its output."""
    folder = tmp_path_factory.mktemp("plan")
    files = {"rows": str(rows), "more": str(write_rows(folder / "more.jsonl", 10, seed=1))}
    files["val"] = str(write_rows(folder / "val.jsonl", 7, seed=2))
    lines = []
    for name, options in RUNS.items():
        default = {
            "model": {"base_model": str(base), "adapter": {"class_path": "LoRA"}},
            "data": {"train": "{rows}", "batch_size": 4, "cache_dir": str(folder / "cache")},
            "trainer": {"accelerator": "cpu", "default_root_dir": str(folder / name)},
        }
        text = yaml.safe_dump(merged(default, options))
        for key, path in files.items():
            text = text.replace("{" + key + "}", path)
        (folder / f"{name}.yaml").write_text(text)
        config = ["--config", f"{name}.yaml"]
        lines += [["plan", *config, "--steps", "3", "--json"], ["fit", *config]]
    done = drive(folder, lines)
    for line, (status, _, err) in zip(lines, done, strict=True):
        assert status == 0, (line, err)
    results = {}
    for i, name in enumerate(RUNS):
        summary = json.loads((folder / name / "summary.json").read_text())
        plan = json.loads(done[2 * i][1])
        results[name] = (plan, summary, done[2 * i + 1][2] + done[2 * i + 1][1], folder / name)
    return results


@pytest.mark.parametrize("name", RUNS)
def test_steps_tokens_and_parameters_are_those_of_the_run(found, name):
    plan, summary, _, _ = found[name]
    assert plan["steps"]["steps"] == summary["steps"]
    assert plan["parameters"]["trainable"] == summary["trainable_parameters"]
    assert plan["parameters"]["total"] == summary["total_parameters"]
    assert plan["parameters"]["base_dtype"] == summary["dtype"]
    trained = plan["steps"]["epochs"] * plan["steps"]["batches"] * plan["steps"]["batch_tokens"]
    if name in ("plain", "several_sources", "cut_rows", "left_out"):  # with whole epochs
        assert trained == summary["tokens"]
    elif name != "max_steps":  # whose other epochs have other batches
        assert trained == pytest.approx(summary["tokens"], rel=0.05)


@pytest.mark.parametrize("name", RUNS)
def test_rows_are_those_that_the_run_counts(found, name):
    plan, _, output, _ = found[name]
    for part in ("train", "val"):
        if (rows := plan[part]) is not None:
            line = f"{part}: {rows['rows']:,} rows, {rows['tokens']:,} tokens, "
            assert line + f"{rows['loss_tokens']:,} of them in the loss" in output
    assert (plan["val"] is None) == ("val: " not in output)


def test_rows_that_are_cut_and_left_out_are_counted(found):
    cut, left_out = found["cut_rows"][0]["train"], found["left_out"][0]["train"]
    assert cut["cut"] > 0 == cut["left_out"]
    assert left_out["left_out"] > 0 == left_out["cut"]
    assert cut["rows"] == 24 == left_out["rows"] + left_out["left_out"]
    assert cut["longest_row"] == 60 < cut["longest_whole"] == left_out["longest_whole"]


def test_validations_are_as_many_as_the_run_makes(found):
    made = {}
    for name, (plan, _, _, folder) in found.items():
        with next(folder.glob("logs/*/metrics.csv")).open() as log:
            made[name] = sum(bool(row.get("val/loss")) for row in csv.DictReader(log))
        assert plan["steps"]["validations"] == made[name], name
    assert made == {
        "plain": 2,  # at the end of each epoch
        "accumulated": 3,
        "max_steps": 4,  # batches 2, 4, 6, and the end
        "tokens_per_batch": 1,  # after every second epoch
        "several_sources": 1,
        "cut_rows": 0,
        "left_out": 0,
    }


@pytest.mark.parametrize("name", ["plain", "tokens_per_batch", "left_out"])
def test_checkpoints_are_as_large_as_the_runs(found, name):
    plan, _, _, folder = found[name]
    kept = [f for f in (folder / "checkpoints").iterdir() if f.name.endswith(".ckpt")]
    sizes = [sum(f.stat().st_size for f in c.rglob("*")) for c in kept]
    assert len(kept) <= plan["disk"]["checkpoints"]  # a run that saves once has none before it
    assert plan["disk"]["checkpoint"] == pytest.approx(max(sizes), rel=0.05)  # other numbers in it


def test_nothing_is_written_into_the_runs_folder(base, rows, tmp_path):
    common = ["--model.base_model", str(base), "--data.train", str(rows)]
    common += ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"]
    common += ["--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint"]
    common += ["--trainer.callbacks.dirpath", "run/mine"]
    lines = [["plan", *common, "--trainer.default_root_dir", "run", "--steps", "2"]]
    [(status, out, err)] = drive(tmp_path, lines)
    assert status == 0, err
    assert "LoRA on base" in out
    assert "measured here" in out
    assert files_in(tmp_path) == []


def test_a_named_gpu_is_planned_for_without_running_a_step(base, rows, tmp_path):
    common = ["plan", "--model.base_model", str(base), "--data.train", str(rows)]
    common += ["--trainer.max_epochs", "2", "--trainer.accelerator", "gpu"]
    gpu = ["--gpu", "a100-80gb", "--trainer.devices", "2", "--trainer.precision", "bf16-mixed"]
    t4 = ["--gpu", "t4", "--json", "--model.adapter", "Full", "--data.batch_size", "5"]
    done = drive(tmp_path, [[*common, *gpu, "--json"], [*common, *t4], [*common, "--gpu", "h10"]])
    (status, out, err), (second, other, _), (refused, _, reason) = done
    assert (status, second, refused) == (0, 0, 2), err
    plan = json.loads(out)
    assert (plan["device"], plan["is_measured"]) == ("NVIDIA A100 80GB", False)
    held_out = plan["val"]["rows"]
    assert plan["steps"]["processes"] == 2
    assert plan["steps"]["steps"] == 2 * -(-(24 - held_out) // 16)  # 8 rows on each of 2 GPUs
    assert "assumed: " in plan["notes"][-1]
    plan = json.loads(other)
    assert plan["parameters"]["trainable"] == plan["parameters"]["total"]
    assert plan["parameters"]["base_dtype"] == "float32"
    assert reason.strip() == (
        "error: --gpu h10: known are h200, h100, h100-pcie, b200, a100-80gb, a100-40gb, l40s, l4, "
        "a10g, a6000, rtx5090, rtx4090, rtx3090, v100, t4; did you mean h100?"
    )
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "FIT is missing; usage: python -m peft_lightning plan FIT ..."),
        (["--steps", "1"], "--steps must be at least 2, as the first batch warms up, got 1"),
        (["--fit_memory", "8 apples"], "write a size such as 8GiB, 24GiB or 900MiB"),
        (["--ckpt_path", "last"], "plan counts a run from its first step; give --ckpt_path none"),
        (["--trainer.fast_dev_run", "true"], "trainer.fast_dev_run is no run to plan: leave it"),
        (["--data.batchsize", "3"], "did you mean"),
    ],
    ids=str,
)
def test_what_cannot_be_planned_is_one_line(
    base, rows, tmp_path, monkeypatch, capsys, options, said
):
    from peft_lightning.__main__ import main

    monkeypatch.chdir(tmp_path)
    fit = ["--model.base_model", str(base), "--data.train", str(rows)] if options else []
    assert main(["plan", *fit, *options]) == 2
    errors = capsys.readouterr().err
    *progress, last = errors.strip().splitlines()
    assert said in last
    assert all(line.startswith("plan:") for line in progress)


def test_a_run_that_fits_is_said_to_and_a_set_of_changes_is_measured_apart(base, rows, tmp_path):
    fit = ["--model.base_model", str(base), "--data.train", str(rows), "--trainer.max_epochs", "1"]
    fit += ["--trainer.accelerator", "cpu", "--data.val_fraction", "0"]
    gpu = ["--gpu", "t4", "--data.batch_size", "8", "--fit_memory"]
    lines = [["plan", *fit, *gpu, "8GiB"], ["plan", *fit, *gpu, "100MiB", "--json"]]
    (status, out, err), (second, advice, _) = drive(tmp_path, lines)
    assert (status, second) == (0, 0), err
    assert out.splitlines()[-1] == "it fits 8 GiB as it is"
    advice = json.loads(advice)["fit_memory"]
    assert advice["best"] is None  # CUDA alone needs more
    assert advice["smallest"]["peak_bytes"] < advice["now"]["peak_bytes"]
    kinds = {variant["options"][0] for variant in advice["single"]}
    assert kinds >= {"--data.batch_size", "--model.activation_checkpointing", "--data.max_length"}

    changed = [*fit, "--data.batch_size", "4", "--trainer.accumulate_grad_batches", "2"]
    found = _measured_apart(changed, 2)
    assert found["is_measured"]
    assert (found["steps"]["steps"], found["steps"]["accumulate"]) == (3, 2)
    with pytest.raises(RunError, match=r"a plan with .* failed: .*batch_size must be at least 1"):
        _measured_apart([*fit, "--data.batch_size", "0"], 2)


MINE = """
import lightning as L
import torch
from torch.utils.data import DataLoader

from peft_lightning.data.collate import flat_collate


def collate(batch):
    return flat_collate([{"input_ids": ids, "labels": ids} for ids in batch])


class Plain(L.LightningDataModule):
    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def train_dataloader(self):
        ids = torch.arange(9 * self.count).remainder(90).add(5).view(self.count, 9).numpy()
        return DataLoader(list(ids), batch_size=2, collate_fn=collate)
"""


def test_a_data_module_of_ones_own_is_planned_without_its_rows(base, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    line = ["plan", "--model.base_model", str(base), "--data", "mine.Plain", "--data.count", "7"]
    line += ["--trainer.max_epochs", "3", "--trainer.accelerator", "cpu", "--fit_memory", "90GiB"]
    [(status, out, err)] = drive(tmp_path, [line])
    assert status == 0, err
    assert "steps    12 in 3 epochs" in out
    assert "train    rows of a data module of your own: not counted" in out
    assert out.splitlines()[-1] == "it fits 90 GiB as it is"
