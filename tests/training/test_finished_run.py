"""A run goes on in its folder wherever that is, and one that is finished stays as it is."""

import json
import shutil

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from cli_driver import drive
from peft_lightning.training.checkpoint import AdapterCheckpoint
from test_damaged_checkpoints import copy, user  # noqa: F401
from test_run_folder import content, in_folder
from tiny_run import fit

BEST = ("checkpoints", "best.ckpt", "adapter_model.safetensors")


def changed(root, before):
    """Return the names of the files that are new or another."""
    return {file.name for file, what in content(root).items() if before.get(file) != what}


def go_on(base, rows, root, others=(), **options):
    callbacks = [*others, AdapterCheckpoint()]
    last = str(root / "checkpoints" / "last.ckpt")
    data = {"val": str(rows)}
    return fit(base, rows, root, callbacks=callbacks, data=data, ckpt_path=last, **options)


@pytest.fixture(scope="module")
def finished(base, rows, tmp_path_factory):
    """The folder of a run of two epochs, each with a validation."""
    root = tmp_path_factory.mktemp("finished") / "run"
    callbacks = [AdapterCheckpoint()]
    fit(base, rows, root, callbacks=callbacks, data={"val": str(rows)})
    return root


LIMITS = [{"max_epochs": 2}, {"max_steps": 3, "max_epochs": -1}]


@pytest.mark.parametrize("limit", LIMITS)
def test_a_finished_run_that_is_continued_changes_no_file(base, rows, finished, tmp_path, limit):
    root = tmp_path / "run"
    shutil.copytree(finished, root)
    before = content(root)
    go_on(base, rows, root, module={"learning_rate": 1e-5}, **limit)
    assert changed(root, before) <= {"run.lock"}


def test_fit_says_that_nothing_is_left_and_touches_no_file(user, tmp_path):  # noqa: F811
    root = copy(user, tmp_path, "run")
    before = {file: file.stat().st_mtime_ns for file in root.rglob("*")}
    options = ["--ckpt_path", "last", "--model.learning_rate", "1e-5"]
    [(status, output, errors)] = drive(user, [in_folder(root, *options)])
    assert status == 0, errors
    assert output == "nothing left to do after step 3: raise trainer.max_steps to go on\n"
    assert {file: file.stat().st_mtime_ns for file in root.rglob("*")} == before


def test_a_finished_run_goes_on_with_more_epochs(base, rows, finished, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(finished, root)
    steps = json.loads((root / "summary.json").read_text())["steps"]
    assert go_on(base, rows, root, max_epochs=3).global_step == steps * 3 // 2


class Spoil(Callback):
    """Makes what is validated far worse."""

    def on_train_batch_end(self, trainer, pl_module, *args):
        for parameter in pl_module.trainable_parameters():
            torch.nn.init.normal_(parameter, std=9.0)


@pytest.mark.parametrize("others", [[], [Spoil()]])
def test_a_moved_run_replaces_its_best_by_a_better_one_alone(
    base, rows, finished, tmp_path, others
):
    root = tmp_path / "elsewhere"
    shutil.copytree(finished, root)
    best = root.joinpath(*BEST)
    before = best.read_bytes()
    score = json.loads((root / "summary.json").read_text())["best_val_loss"]
    trainer = go_on(base, rows, root, others, max_epochs=3)
    kept = trainer.checkpoint_callback
    assert kept.best_model_path == str(root / "checkpoints" / "best.ckpt")
    assert (best.read_bytes() == before) == bool(others)
    assert (float(kept.best_model_score) == score) == bool(others)


def test_the_best_of_a_moved_run_by_a_checkpoint_callback_of_the_user_is_kept(
    base, rows, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)

    def own():
        return ModelCheckpoint(dirpath="own", monitor="val/loss", filename="mine")

    data = {"val": str(rows)}
    fit(base, rows, tmp_path / "run", callbacks=[own()], data=data)
    (tmp_path / "there").mkdir()
    shutil.move(tmp_path / "run", tmp_path / "there/run")
    shutil.move(tmp_path / "own", tmp_path / "there/own")
    monkeypatch.chdir(tmp_path / "there")
    kept, root = own(), tmp_path / "there/run"
    go_on(base, rows, root, [kept, Spoil()], max_epochs=3)
    assert kept.best_model_path == str(tmp_path / "there/own/mine.ckpt")
