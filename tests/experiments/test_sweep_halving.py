"""Successive halving: which points go on, by which validation, and what the others say."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from cli_driver import ENVIRONMENT, drive
from peft_lightning.experiments.sweep.halving import better_half, ordinal, validations
from sweeping import ENV, in_this_process

CONFIG = """
model:
  base_model: BASE
  learning_rate: 1.0e-2
  adapter: {class_path: LoRA, init_args: {r: 2, lora_dropout: 0.1}}
  lr_schedule: {class_path: Cosine, init_args: {warmup: 0.1}}
data: {train: rows.jsonl, val: rows.jsonl, batch_size: 8, cache_dir: cache}
trainer: {max_epochs: 3, accelerator: cpu, logger: false}
"""
ALL = ["sweep", "--config", "run.yaml", "--vary", "model.learning_rate=1e-5,1e-2,1e-6"]
ALL += ["--seeds", "0,1", "--dir", "runs/rates", "--stop-early"]


def test_the_half_with_the_smallest_losses_goes_on_rounded_up():
    assert better_half({"a": 3.0, "b": 1.0, "c": 2.0, "d": 4.0}) == ["b", "c"]
    assert better_half({"a": 3.0, "b": 1.0, "c": 2.0}) == ["b", "c"]
    assert better_half({"a": 3.0}) == ["a"]
    assert better_half({}) == []


def test_a_loss_that_is_no_number_is_the_worst_and_of_equal_ones_the_first_is_better():
    assert better_half({"a": math.nan, "b": 9.0}) == ["b"]
    assert better_half({"a": math.inf, "b": math.nan, "c": 1.0, "d": 1.0}) == ["c", "d"]


def test_the_validations_of_a_run_are_those_of_its_history(tmp_path):
    assert validations(tmp_path) == []
    lines = [
        {"kind": "val", "step": 0, "metrics": {"val/loss": 9.0}},  # before training
        {"kind": "train", "step": 5, "metrics": {"train/loss": 3.0}},
        {"kind": "val", "step": 5, "metrics": {"val/loss": 2.0}},
        {"kind": "val", "step": 10, "metrics": {"val/loss": 1.5}},
    ]
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"kind": "va'
    (tmp_path / "history.jsonl").write_text(text)
    assert [(v.step, v.loss) for v in validations(tmp_path)] == [(5, 2.0), (10, 1.5)]


def test_places_are_written_in_english():
    written = [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 102, 111)]
    assert written == ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "102nd", "111th"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, base, rows):
    folder = tmp_path_factory.mktemp("halving")
    (folder / "rows.jsonl").write_text(rows.read_text())
    (folder / "run.yaml").write_text(CONFIG.replace("BASE", str(base)))
    return folder


@pytest.fixture(scope="module")
def halved(folder):
    """Three rates with two seeds, of which two and then one go on."""
    status, output, errors = in_this_process(folder, ALL)
    assert status == 0, errors
    return output


def test_the_seeds_of_a_point_stay_together_and_what_was_stopped_says_when_and_why(folder, halved):
    points = json.loads((folder / "runs/rates/sweep.json").read_text())["points"]
    told = {point["name"]: point["reason"] or point["status"] for point in points}
    assert told == {
        "learning_rate=1e-05-seed=0": "stopped early at step 6, 2nd of 2",
        "learning_rate=1e-05-seed=1": "stopped early at step 6, 2nd of 2",
        "learning_rate=0.01-seed=0": "finished",
        "learning_rate=0.01-seed=1": "finished",
        "learning_rate=1e-06-seed=0": "stopped early at step 3, 3rd of 3",
        "learning_rate=1e-06-seed=1": "stopped early at step 3, 3rd of 3",
    }
    assert "learning_rate=1e-06-seed=1  stopped early at step 3, 3rd of 3" in halved
    for point in points:
        seen = validations(folder / "runs/rates" / point["name"])
        assert point["val_loss"] == min(v.loss for v in seen[: len(seen)])


def test_a_point_that_went_through_all_rungs_is_bit_for_bit_a_run_that_was_never_stopped(
    folder, halved
):
    line = ["fit", "--config", "run.yaml", "--trainer.default_root_dir", "single"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENVIRONMENT, "PYTHONPATH", ENV["PYTHONPATH"])
        assert drive(folder, [[*line, "--seed_everything", "1"]])[0][0] == 0
    one, other = (
        load_file(folder / run / "checkpoints/last.ckpt/adapter_model.safetensors")
        for run in ("runs/rates/learning_rate=0.01-seed=1", "single")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_same_command_decides_the_same_without_training(folder, halved):
    before = (folder / "runs/rates/sweep.json").read_text()
    status, output, errors = in_this_process(folder, ALL)
    assert status == 0
    assert output == halved
    assert "finished, " not in errors
    assert (folder / "runs/rates/sweep.json").read_text() == before


def test_without_validation_and_on_a_cluster_it_is_refused(folder):
    place = ALL.index("--dir")
    args = [*ALL[:place], *ALL[place + 2 : -1], "--dir", "runs/other"]
    _, _, errors = in_this_process(
        folder, [*args, "--stop-early", "--data.val=null", "--data.val_fraction=0"]
    )
    assert "--stop-early compares points by val/loss, but there is no data.val" in errors
    _, _, errors = in_this_process(folder, [*args, "--stop-early", "--slurm"])
    assert "with --slurm each is a job of its own: leave one of them out" in errors
    _, _, errors = in_this_process(folder, [*args, "--time", "1:00"])
    assert "--time is for --slurm" in errors
    _, _, errors = in_this_process(folder, [*args, "--slurm", "--retries", "2"])
    assert "--retries is for this machine" in errors
