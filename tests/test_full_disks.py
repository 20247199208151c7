"""Every kind of write onto a disk that is full or read-only: one line that names what was not."""

import os
import shutil
import subprocess

import pytest

from cli_driver import drive

FIT = [
    "fit",
    "--model.base_model",
    "base",
    "--data.train",
    "rows.jsonl",
    "--trainer.max_steps",
    "2",
]
FIT += ["--trainer.accelerator", "cpu", "--data.cache_dir", "cache"]
PREDICT = ["predict", "--config", "run/config.yaml", "--data.predict", "rows.jsonl"]
PREDICT += ["--ckpt_path", "best", "--model.predict_max_new_tokens", "1"]
LOGS = """
import shutil
from lightning.pytorch.callbacks import Callback

class Remove(Callback):
    def on_train_batch_end(self, trainer, *args):
        shutil.rmtree(trainer.default_root_dir + "/logs", ignore_errors=True)
"""
WRITES = [  # command lines, and what the line names
    (["merge", "adapter", "disk/m"], "disk/m"),
    (["export", "adapter", "disk/a.gguf"], "disk/a."),
    (["export", "adapter", "disk/m.gguf", "--type", "model"], "disk/m.gguf"),
    (["combine", "disk/c", "adapter=1"], "disk/c"),
    (["resize", "adapter", "disk/r", "--rank", "1"], "disk/r"),
    (
        ["generate", "--ckpt_path", "adapter", "--file", "rows.jsonl", "--output", "disk/g"],
        "disk/g",
    ),
    ([*PREDICT, "--output", "disk/p.jsonl"], "disk/p.jsonl"),
    (["report", "run", "--out", "disk/r.html"], "disk/r.html"),
    (["audit", "rows.jsonl", "--tokenizer", "base", "--html", "disk/a.html"], "disk/a.html"),
    ([*FIT, "--trainer.default_root_dir", "disk/run"], "disk/run"),
    ([*FIT, "--trainer.default_root_dir", "other", "--data.cache_dir", "disk/cache"], "disk/cache"),
]


@pytest.fixture(scope="module")
def user(tmp_path_factory, base, rows):
    """A folder with a base, rows, a finished run and its adapter."""
    folder = tmp_path_factory.mktemp("disks")
    shutil.copytree(base, folder / "base")
    shutil.copy(rows, folder / "rows.jsonl")
    (folder / "logs_gone.py").write_text(LOGS)
    [(status, _, errors)] = drive(folder, [[*FIT, "--trainer.default_root_dir", "run"]])
    assert status == 0, errors
    shutil.copytree(folder / "run/checkpoints/best.ckpt", folder / "adapter")
    (folder / "disk").mkdir()
    return folder


@pytest.fixture
def mounted(user):
    """A function that mounts a small tmpfs at ``disk``, which root can and others cannot."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a file system needs root")
    place = str(user / "disk")

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")

    yield mount
    subprocess.run(["umount", place], check=False)


@pytest.mark.parametrize(
    ("options", "reason"),
    [("size=4k", "No space left on device"), ("ro,size=1m", "Read-only file system")],
)
def test_what_cannot_be_written_is_named_in_one_line(user, mounted, options, reason):
    mounted(options)
    found = drive(user, [line for line, _ in WRITES])
    for (line, name), (status, out, errors) in zip(WRITES, found, strict=True):
        said = errors.splitlines()[-1]
        assert status == 2, (line, errors)
        assert "Traceback" not in out + errors, line
        assert ".tmp" not in said, line
        assert name in said, line
        assert f"cannot be written: {reason}" in said, line
    assert not list((user / "disk").rglob("*.tmp"))


def test_a_lost_folder_of_logs_does_not_end_a_training(user):
    every = ["--trainer.log_every_n_steps", "1", "--trainer.callbacks", "[logs_gone.Remove]"]
    line = [*FIT, *every, "--trainer.default_root_dir", "lost", "--trainer.max_steps", "4"]
    [(status, _, errors)] = drive(user, [line])
    assert status == 0, errors
    assert (user / "lost/checkpoints/best.ckpt").is_dir()
