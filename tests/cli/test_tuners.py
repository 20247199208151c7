"""Lightning's tuners named in YAML: what they find is what the run trains with."""

import json

import pytest
import torch
import yaml

from cli_driver import drive

SIZES = {"class_path": "lightning.pytorch.callbacks.BatchSizeFinder"}
SIZES["init_args"] = {"max_trials": 3, "init_val": 2, "steps_per_trial": 1}
RATES = {"class_path": "lightning.pytorch.callbacks.LearningRateFinder"}
RATES["init_args"] = {"min_lr": 1.0e-5, "max_lr": 0.1, "num_training_steps": 20}


@pytest.fixture(scope="module")
def runs(base, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuners")
    common = [
        *("fit", "--model.base_model", str(base), "--data.train", str(rows)),
        *("--trainer.log_every_n_steps", "1", "--data.batch_size"),
    ]
    cases = {
        "size": (SIZES, ["1", "--trainer.max_epochs", "2"]),
        "rate": (RATES, ["4", "--trainer.max_epochs", "4"]),
        "budget": (SIZES, ["1", "--data.tokens_per_batch", "160"]),
    }
    lines = []
    for name, (callback, options) in cases.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
        root = ["--trainer.default_root_dir", str(folder / name)]
        lines.append(["fit", "--config", f"{name}.yaml", *root, *common[1:], *options])
    return folder, dict(zip(cases, drive(folder, lines), strict=True))


def state_of(run):
    return torch.load(run / "checkpoints/last.ckpt/trainer_state.pt", weights_only=True)


def test_a_found_batch_size_makes_the_steps(runs):
    folder, results = runs
    assert results["size"][0] == 0, results["size"][2]
    assert "continue with full run using batch size 8" in results["size"][2]
    assert json.loads((folder / "size" / "summary.json").read_text())["steps"] == 6


def test_a_found_rate_is_that_of_the_optimizer(runs):
    folder, results = runs
    assert results["rate"][0] == 0, results["rate"][2]
    found = float(results["rate"][2].rpartition("Learning rate set to ")[2].split()[0])
    (optimizer,) = state_of(folder / "rate")["optimizer_states"]
    assert optimizer["param_groups"][0]["initial_lr"] == found


def test_a_size_without_an_effect_is_one_line(runs):
    status, _, errors = runs[1]["budget"]
    assert status == 2
    assert "data.tokens_per_batch decides how large batches are" in errors.splitlines()[-1]
