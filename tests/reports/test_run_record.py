"""What is read from a run's folder, finished, running, stopped or killed."""

import json
import os
import shutil

import pytest
from lightning.pytorch.callbacks import Callback

from peft_lightning.messages import UserError
from peft_lightning.reports.run_record import read_run
from tiny_run import fit


class Reads(Callback):
    """Reads the record of the run that it is a callback of."""

    def on_train_batch_end(self, trainer, *args):
        self.seen = read_run(trainer.default_root_dir)


@pytest.fixture(scope="module")
def run(base, rows, tmp_path_factory):
    root = tmp_path_factory.mktemp("record") / "run"
    options = {"data": {"val_fraction": 0.25}, "log_every_n_steps": 2, "max_epochs": 1}
    module = {"sample_prompts": ["say 1"], "sample_max_new_tokens": 2}
    trainer = fit(base, rows, root, callbacks=[reads := Reads()], module=module, **options)
    return trainer, reads, root


def copy(run, tmp_path):
    return shutil.copytree(run[2], tmp_path / "run")


def test_a_record_has_what_the_run_wrote(run):
    trainer, _, root = run
    (root / "config.yaml").write_text("trainer: {max_epochs: 1}\n")
    record = read_run(str(root))
    assert (record.name, record.status) == ("run", "finished")
    assert record.config == {"trainer": {"max_epochs": 1}}
    assert record.summary == json.loads((root / "summary.json").read_text())
    assert [line["step"] for line in record.train_curve] == [2, 4, 5]
    assert [line["step"] for line in record.val_curve] == [5]
    val = float(trainer.callback_metrics["val/loss"])
    assert record.values("val", "val/loss", "tokens") == ([record.summary["tokens"]], [val])
    assert record.samples[-1]["prompt"] == "say 1"
    assert record.best_checkpoint == root / "checkpoints/best.ckpt"
    assert record.last_checkpoint == root / "checkpoints/last.ckpt"
    assert record.warnings == []


def test_a_run_reads_its_own_record_and_keeps_its_lock(run):
    _, reads, _ = run
    assert reads.seen.status == "running"
    assert reads.seen.summary == {}
    assert [line["step"] for line in reads.seen.train_curve] == [2, 4]


def test_a_run_without_a_word_of_its_end_was_killed(run, tmp_path):
    folder = copy(run, tmp_path)
    line = {"kind": "train", "step": 6, "metrics": {}}
    with (folder / "history.jsonl").open("a") as file:  # a run that went on after the summary
        file.write(json.dumps(line) + "\n")
    assert read_run(folder).status == "killed"
    (folder / "summary.json").unlink()
    assert read_run(folder).status == "killed"


def test_half_a_line_is_left_out_and_null_is_nan(run, tmp_path):
    folder = copy(run, tmp_path)
    line = {"kind": "train", "step": 5, "metrics": {"train/loss": None}}
    with (folder / "history.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n" + '{"kind": "train", "st')
    found = read_run(folder).values("train", "train/loss")
    assert found[0] == [2, 4, 5, 5]
    assert found[1][-1] != found[1][-1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "nothing is not there: give the folder of a run"),
        ("run/summary.json", "is a file: give the folder of a run"),
        (".", "is no run's folder, it has no run.json.*; these folders in it are: run"),
        ("run/checkpoints", "is no run's folder, it has no run.json"),
    ],
)
def test_what_is_no_run_is_refused(run, tmp_path, name, message):
    copy(run, tmp_path)
    with pytest.raises(UserError, match=message):
        read_run(tmp_path / name)


@pytest.mark.parametrize("name", ["summary.json", "config.yaml"])
def test_a_damaged_file_is_named(run, tmp_path, name):
    folder = copy(run, tmp_path)
    (folder / name).write_text('{"a": ')
    with pytest.raises(UserError, match=f"{name} is damaged"):
        read_run(folder)


def test_a_finished_run_that_was_copied_has_finished(run, tmp_path):
    folder = copy(run, tmp_path)
    os.utime(folder / "run.json")  # newer than the summary
    assert read_run(folder).status == "finished"
