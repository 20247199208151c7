"""``model.lr_schedule`` on the command line: schedules of torch and functions by their paths."""

import csv

import pytest
import yaml

from cli_driver import drive

TORCH = "torch.optim.lr_scheduler."
CASES = {  # options, and the learning rates of the three steps
    "a class": (
        ["--model.lr_schedule", f"{TORCH}ConstantLR", "--model.lr_schedule.factor", "0.5"],
        [0.005, 0.005, 0.005],
    ),
    "a class that takes the run's steps": (
        ["--model.lr_schedule", "OneCycleLR", "--model.lr_schedule.max_lr", "0.01"],
        [0.0099442, 0.0046264, 4e-8],  # of torch itself, total_steps=3
    ),
    "a function of the step": (["--model.lr_schedule", "mine.halved"], [0.01, 0.005, 0.0025]),
    "a factory": (["--model.lr_schedule", "mine.constant"], [0.005, 0.005, 0.005]),
}
WRONG = {
    "an option that is missing": ([f"{TORCH}StepLR"], "StepLR needs 'step_size'"),
    "an option that does not exist": (
        [f"{TORCH}StepLR", "--model.lr_schedule.stepsize", "3"],
        "StepLR has no option 'stepsize'; did you mean 'step_size'?",
    ),
}
MINE = """
import torch


def halved(step):
    return 0.5**step


def constant(optimizer):
    return torch.optim.lr_scheduler.ConstantLR(optimizer, 0.5)
"""


@pytest.fixture(scope="module")
def runs(base, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("schedules")
    (folder / "mine.py").write_text(MINE)
    common = [
        *("fit", "--model.base_model", str(base), "--data.train", str(rows)),
        *("--model.learning_rate", "0.01", "--trainer.max_epochs", "1"),
        *("--trainer.log_every_n_steps", "1"),
        *("--trainer.callbacks+", "lightning.pytorch.callbacks.LearningRateMonitor"),
    ]
    given = [options for options, _ in CASES.values()]
    given += [["--model.lr_schedule", *options] for options, _ in WRONG.values()]
    lines = [
        [*common, "--trainer.default_root_dir", str(folder / str(i)), *options]
        for i, options in enumerate(given)
    ]
    return folder, dict(zip([*CASES, *WRONG], drive(folder, lines), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_the_rates_are_those_of_the_schedule(runs, name):
    folder, results = runs
    status, _, errors = results[name]
    assert status == 0, errors
    run = folder / str([*CASES].index(name))
    with (run / "logs" / "version_0" / "metrics.csv").open() as file:
        logged = list(csv.DictReader(file))
    column = next(key for key in logged[0] if key.startswith("lr-"))
    rates = [float(row[column]) for row in logged if row[column]]
    assert rates == pytest.approx(CASES[name][1], rel=1e-4)  # as many digits as are written here
    schedule = yaml.safe_load((run / "config.yaml").read_text())["model"]["lr_schedule"]
    assert CASES[name][0][1].rpartition(".")[2] in str(schedule)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_option_of_a_scheduler_is_one_line(runs, name):
    status, _, errors = runs[1][name]
    assert status == 2
    assert WRONG[name][1] in errors.strip().splitlines()[-1]
