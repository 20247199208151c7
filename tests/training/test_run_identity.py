"""A checkpoint is of one run, and another run in its folder does not go on from it."""

import json
import re

import pytest
from lightning.pytorch.callbacks import Callback

from peft_lightning.__main__ import main
from peft_lightning.adapters.folder import FACTS_FILE
from peft_lightning.training.checkpoint import AdapterCheckpoint
from peft_lightning.training.checkpoint_path import checkpoint_path
from tiny_run import fit


class Crash(Callback):
    """Ends a run at its second step, before anything is saved."""

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 2:
            raise RuntimeError("a crash")


@pytest.fixture
def finished(base, rows, tmp_path):
    """The folder of a run that is over."""
    root = tmp_path / "run"
    fit(base, rows, root, callbacks=[AdapterCheckpoint()], max_steps=2)
    return root


def run_of(file):
    return json.loads(file.read_text())["run"]


def test_a_run_has_one_name_from_its_start_through_every_resume(base, rows, finished):
    last = finished / "checkpoints" / "last.ckpt"
    name = run_of(finished / "run.json")
    assert run_of(last / FACTS_FILE) == name
    assert checkpoint_path("fit", "last", finished) == str(last)
    fit(base, rows, finished, callbacks=[AdapterCheckpoint()], max_steps=4, ckpt_path=str(last))
    assert run_of(last / FACTS_FILE) == run_of(finished / "run.json") == name


def test_a_run_does_not_go_on_from_what_an_earlier_one_left(base, rows, finished, monkeypatch):
    with pytest.raises(RuntimeError, match="a crash"):
        fit(base, rows, finished, callbacks=[Crash(), AdapterCheckpoint()], max_steps=4)
    said = []
    monkeypatch.setattr("peft_lightning.training.checkpoint_path.rank_zero_info", said.append)
    assert checkpoint_path("fit", "last", finished) is None
    assert re.search(r"from the beginning; \S+last\.ckpt is of an earlier one", said[0])
    with pytest.raises(ValueError, match=r"best\.ckpt is of an earlier run"):
        checkpoint_path("validate", "best", finished)
    by_path = str(finished / "checkpoints" / "best.ckpt")
    assert checkpoint_path("validate", by_path, finished) == by_path


def test_a_requeued_job_goes_on_from_its_own_last_whatever_it_began_with(
    base, rows, tmp_path, monkeypatch
):
    root = tmp_path / "run"
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("PEFT_LIGHTNING_JOB", "17")
    fit(base, rows, root, callbacks=[AdapterCheckpoint()], max_steps=2)
    last = str(root / "checkpoints" / "last.ckpt")
    assert checkpoint_path("fit", None, root) is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert checkpoint_path("fit", None, root) == last
    assert checkpoint_path("fit", "elsewhere/best.ckpt", root) == last
    assert checkpoint_path("test", None, root) is None
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    monkeypatch.setenv("PEFT_LIGHTNING_JOB", "18")
    assert checkpoint_path("fit", None, root) is None


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_checkpoint_that_lightning_would_load_by_itself_is_refused(
    command, tmp_path, monkeypatch
):
    (tmp_path / "hpc_ckpt_1.ckpt").touch()
    assert checkpoint_path(command, None, tmp_path) is None
    for name, value in {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"hpc_ckpt_1\.ckpt is another program's.*remove it"):
        checkpoint_path(command, None, tmp_path)


def test_the_checkpoint_of_a_run_in_the_home_folder_is_found(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text(
        f"model: {{base_model: {base}}}\ntrainer: {{default_root_dir: ~/runs/a}}\n"
    )
    assert main(["validate", "--config", str(tmp_path / "run.yaml"), "--ckpt_path", "best"]) == 2
    assert f"there is no {tmp_path}/runs/a/checkpoints/best.ckpt" in capsys.readouterr().err
