"""What was trained in a run's folder is not lost; a run goes on from its newest checkpoint."""

import json
import shutil

import pytest

from cli_driver import drive, saved_step
from test_damaged_checkpoints import copy, flip_a_bit, last, user  # noqa: F401

FIT = ["fit", "--config", "run.yaml"]


def in_folder(root, *options):
    return [*FIT, "--trainer.default_root_dir", str(root), *options]


def content(root):
    return {p: p.read_bytes() for p in root.rglob("*") if p.is_file() and "logs" not in p.parts}


@pytest.fixture(scope="module")
def results(user, tmp_path_factory):  # noqa: F811
    """Folder, files before, status, output and errors of a fit in a folder that holds a run."""
    tmp_path = tmp_path_factory.mktemp("folders")
    roots = {
        name: copy(user, tmp_path, name)
        for name in ("again", "none", "overwrite", "unfinished", "gone", "empty", "anew", "folder")
    }
    for name in ("unfinished", "anew"):
        summary = json.loads((roots[name] / "summary.json").read_text())
        summary["status"] = "stopped: KeyboardInterrupt"
        (roots[name] / "summary.json").write_text(json.dumps(summary))
    shutil.rmtree(last(roots["gone"]))
    for file in last(roots["empty"]).iterdir():
        file.unlink()
    before = {name: content(root) for name, root in roots.items()}
    more = ("--trainer.max_steps", "4")
    options = {
        "again": ("--model.learning_rate", "1e-6"),
        "none": ("--ckpt_path", "none"),
        "overwrite": ("--overwrite",),
        "unfinished": (),
        "gone": ("--ckpt_path", "last", *more),
        "empty": ("--ckpt_path", "last", *more),
        "anew": ("--ckpt_path", "none"),
        "folder": ("--ckpt_path", str(roots["folder"]), *more),
    }
    done = drive(user, [in_folder(roots[name], *options[name]) for name in roots])
    return {
        name: (roots[name], before[name], *result) for name, result in zip(roots, done, strict=True)
    }


@pytest.mark.parametrize("name", ["again", "none"])
def test_a_finished_run_is_not_replaced_by_another_one(results, name):
    root, before, status, output, errors = results[name]
    assert (status, output) == (2, "")
    assert errors.count("\n") == 1
    assert f"{root} holds a finished run of 3 steps" in errors
    for way in ("--ckpt_path last", "--trainer.default_root_dir", "--overwrite"):
        assert way in errors
    assert content(root) == before


def test_overwrite_replaces_it_and_stands_in_no_config(results):
    root, before, status, _, errors = results["overwrite"]
    assert status == 0, errors
    assert content(root)[root / "run.json"] != before[root / "run.json"]
    assert "overwrite:" not in (root / "config.yaml").read_text()


def test_a_run_that_has_not_finished_is_begun_anew_only_if_that_is_said(results):
    root, before, status, _, errors = results["unfinished"]
    assert status == 2
    assert "has not finished" in errors
    assert "--ckpt_path none" in errors
    assert content(root) == before
    assert results["anew"][2] == 0, results["anew"][4]


@pytest.mark.parametrize("name", ["gone", "empty"])
def test_without_a_whole_last_checkpoint_the_newest_whole_one_is_used_and_said(results, name):
    root, _, status, _, errors = results[name]
    assert status == 0, errors
    assert "last.ckpt" in errors
    assert f"{root}/checkpoints/best.ckpt, of step 3" in errors
    assert saved_step(last(root)) == 4


def test_the_folder_of_a_run_is_its_last_checkpoint(results):
    root, _, status, _, errors = results["folder"]
    assert status == 0, errors
    assert saved_step(last(root)) == 4


def test_an_adapter_to_begin_with_beside_a_checkpoint_is_said_not_to_be_read(user, tmp_path):  # noqa: F811
    root = copy(user, tmp_path, "run")
    options = ("--model.init_from", str(root / "checkpoints/best.ckpt"), "--ckpt_path", "last")
    [(status, _, errors)] = drive(user, [in_folder(root, *options, "--trainer.max_steps", "4")])
    assert status == 0, errors
    assert "is not read: the weights are those of" in errors


def test_nothing_of_a_run_with_only_damaged_checkpoints_is_replaced(user, tmp_path):  # noqa: F811
    root = copy(user, tmp_path, "run")
    for checkpoint in (root / "checkpoints").glob("*.ckpt"):
        flip_a_bit(checkpoint / "adapter_model.safetensors")
    before = content(root)
    [(status, _, errors)] = drive(user, [in_folder(root, "--ckpt_path", "last")])
    assert status == 2
    assert "previous.ckpt is damaged" in errors
    assert content(root) == before
