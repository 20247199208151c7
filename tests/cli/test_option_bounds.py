"""A value that an option's type allows and its meaning does not is refused at once, in one line."""

import json

import pytest

from cli_driver import drive
from peft_lightning.cli.config_index import repeated_options

CONFIG = (
    "model: {{base_model: {base}}}\ndata: {{train: {rows}}}\ntrainer: {{accelerator: cpu, {own}}}\n"
)
WRONG = [  # option, value, in the message
    ("seed_everything", "-1", "from 0 to 4294967295"),
    ("data.batch_size", "0", "at least 1"),
    ("data.num_workers", "-1", "at least 0"),
    ("data.seed", "-5", "from 0 to 4294967295"),
    ("data.val_batch_size", "0", "at least 1"),
    ("data.tokens_per_batch", "0", "at least 1"),
    ("model.learning_rate", "0", "above 0"),
    ("model.learning_rate", "-1", "above 0"),
    ("model.adapter.r", "0", "at least 1"),
    ("model.adapter.lora_alpha", "0", "above 0"),
    ("trainer.accelerator", "gpi", "did you mean gpu?"),
    ("trainer.accumulate_grad_batches", "0", "at least 1"),
    ("trainer.check_val_every_n_epoch", "0", "at least 1"),
    ("trainer.default_root_dir", "ok.yaml", "cannot be written: Not a directory; give one"),
    ("trainer.default_root_dir", "/proc/x", "cannot be written: No such file or directory; give"),
    ("trainer.devices", "0", "a number of devices"),
    ("trainer.devices", "-1", "a number of processes on a CPU"),
    ("trainer.devices", "[7]", "a number of processes on a CPU"),
    ("trainer.devices", "x", "a number of devices"),
    ("trainer.limit_train_batches", "0", "not 0"),
    ("trainer.limit_val_batches", "-1", "a fraction from 0.0 to 1.0"),
    ("trainer.limit_val_batches", "1.5", "a fraction from 0.0 to 1.0"),
    ("trainer.log_every_n_steps", "-1", "at least 0"),
    ("trainer.max_epochs", "0", "at least 1, or -1 for no limit"),
    ("trainer.max_steps", "0", "at least 1, or -1 for no limit"),
    ("trainer.max_steps", "-2", "at least 1, or -1 for no limit"),
    ("trainer.min_epochs", "5", "more than trainer.max_epochs, 1"),
    ("trainer.min_steps", "-1", "at least 0"),
    ("trainer.num_nodes", "0", "at least 1"),
    ("trainer.num_sanity_val_steps", "-5", "at least 0, or -1"),
    ("trainer.overfit_batches", "-1", "a fraction from 0.0 to 1.0"),
    ("trainer.profiler", "simpel", "did you mean simple?"),
    ("trainer.reload_dataloaders_every_n_epochs", "-1", "at least 0"),
    ("trainer.strategy", "dpp", "did you mean ddp?"),
    ("trainer.val_check_interval", "0", "a number of batches"),
    ("trainer.val_check_interval", "0.0", "a fraction of an epoch"),
]
LATER = [  # what only the rows or the first batches show
    ("trainer.val_check_interval", "50", "50"),
    (
        "trainer.callbacks",
        "[{class_path: EarlyStopping, init_args: {monitor: val_loss}}]",
        "val/loss",
    ),
]

IN_CONFIG = WRONG[::6]


@pytest.fixture(scope="module")
def refused(tmp_path_factory, base, rows):
    """What ``fit`` returned for each wrong value, as an option and as a line of the config."""
    folder = tmp_path_factory.mktemp("bounds")
    config = CONFIG.format(
        base=json.dumps(str(base)), rows=json.dumps(str(rows)), own="max_epochs: 1"
    )
    (folder / "ok.yaml").write_text(config)
    lines = [
        ["fit", "--config", "ok.yaml", f"--{key}", value] for key, value, _ in [*WRONG, *LATER]
    ]
    for number, (key, value, _) in enumerate(IN_CONFIG):
        section, _, name = key.rpartition(".")
        inner = f"{name}: {value}"
        for part in reversed(section.split(".") if section else []):
            inner = f"{part}: {{{inner}}}"
        (folder / f"{number}.yaml").write_text(f"{inner}\n")
        lines.append(["fit", "--config", "ok.yaml", "--config", f"{number}.yaml"])
    twice = ["--data.batch_size", "4", "--data.batch_size", "0"]
    lines.append(["fit", "--config", "ok.yaml", *twice])
    return drive(folder, lines), list(folder.glob("runs/*"))


@pytest.mark.parametrize("number", range(len(WRONG)), ids=[f"{k}={v}" for k, v, _ in WRONG])
def test_the_option_and_what_it_may_be_are_named_in_the_only_line(refused, number):
    key, value, allowed = WRONG[number]
    status, output, errors = refused[0][number]
    assert (status, output) == (2, "")
    assert errors.startswith(f"error: --{key} ")
    assert errors.count("\n") == 1
    assert allowed in errors
    assert value.strip("[]") in errors


@pytest.mark.parametrize("number", range(len(IN_CONFIG)), ids=[k for k, _, _ in IN_CONFIG])
def test_the_line_of_the_config_is_named(refused, number):
    status, _, errors = refused[0][len(WRONG) + len(LATER) + number]
    assert status == 2
    assert errors.startswith(f"error: {number}.yaml, line 1: {IN_CONFIG[number][0]} ")


@pytest.mark.parametrize("number", range(len(LATER)))
def test_what_shows_later_is_one_line_too(refused, number):
    status, output, errors = refused[0][len(WRONG) + number]
    assert status == 2
    assert "Traceback" not in output + errors
    assert LATER[number][2] in errors.splitlines()[-1]
    assert errors.splitlines()[-1].startswith("error: ")


def test_nothing_is_written_for_a_refused_value(refused):
    assert {path.name for path in refused[1]} <= {"ok"}


def test_options_given_several_times_are_found_unless_they_add_to_a_list():
    args = ["--config", "a", "--config", "b", "--x", "1", "--y=2", "--x=3", "--y", "2"]
    assert repeated_options(args) == [("--x", ["1", "3"])]
    callbacks = ["--c+", "A", "--c.monitor", "a", "--c+", "B", "--c.monitor", "b"]
    assert repeated_options(callbacks) == []


def test_the_value_that_is_used_of_an_option_given_twice_is_said(refused):
    _, _, errors = refused[0][-1]
    assert "--data.batch_size is given several times: 0 is used, the last of them" in errors
