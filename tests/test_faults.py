"""Faults of a machine, made for real under the real command line: disk, memory, clock, two runs."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import warm_python
from cli_driver import ENVIRONMENT, drive, saved_step, wait_for
from peft_lightning.files import require_undamaged
from test_cli import DATA, MODEL

TRAINER = "accelerator: cpu, enable_progress_bar: false, max_steps: 4, logger: false"

FAULTS = '''
"""Faults that a callback makes while a run trains."""

import os
import resource
import time
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback


class Full(Callback):
    """Fills the disk after two steps."""

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 2:
            with open(Path(trainer.default_root_dir) / "filler", "wb") as file:
                try:
                    while True:
                        file.write(bytes(1024))
                        file.flush()
                except OSError:
                    pass


class Memory(Callback):
    """Allows 150 MB more than the process has when training starts."""

    def on_train_start(self, *args):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 150 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

    def on_exception(self, *args):
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class Clock(Callback):
    """Sets the time of day back by a day at each step, and that of the checkpoints at random."""

    def on_train_batch_end(self, trainer, *args):
        original = time.time
        time.time = lambda: original() - 86400
        for i, file in enumerate(Path(trainer.default_root_dir).rglob("*.ckpt")):
            os.utime(file, (10**9 * (i % 2), 10**9 * (i % 2)))


class NotANumber(Callback):
    """Makes the weights of step 2 not a number, as a diverged run's are."""

    def on_train_batch_start(self, trainer, module, *args):
        if trainer.global_step == 2:
            with torch.no_grad():
                module.trainable_parameters()[0].fill_(float("nan"))


class Wait(Callback):
    """Trains on until it is killed."""

    def on_train_batch_end(self, *args):
        Path("training").touch()
        time.sleep(60)
'''


@pytest.fixture
def user(tmp_path, base, rows):
    """A user's folder with rows, a config, and the faults."""
    model = MODEL.replace("BASE", str(base)) + ", adapter: {class_path: LoRA, init_args: {r: 2}}}"
    (tmp_path / "run.yaml").write_text(model + DATA.replace("TRAINER", TRAINER))
    (tmp_path / "rows.jsonl").write_text(rows.read_text())
    (tmp_path / "faults.py").write_text(FAULTS)
    return tmp_path


def fit(*options: str, fault: str | None = None) -> list[str]:
    checkpoints = "peft_lightning.training.checkpoint.AdapterCheckpoint"
    saves = f"{{class_path: {checkpoints}, init_args: {{every_n_steps: 1}}}}"
    faults = f", {{class_path: faults.{fault}}}" if fault else ""
    return ["fit", "--config", "run.yaml", "--trainer.callbacks", f"[{saves}{faults}]", *options]


def only_error(result: tuple[int | str, str, str], status: int) -> str:
    """Return the error's line, the last of what was said."""
    assert result[0] == status, result[2]
    lines = result[2].strip().splitlines()
    assert [line for line in lines if line.startswith("error:")] == lines[-1:]
    return lines[-1]


@pytest.fixture
def mounted(user):
    """A function that mounts a small tmpfs at ``runs``, which root can and others cannot."""
    place = user / "runs"
    place.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        return place

    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a file system needs root")
    yield mount
    subprocess.run(["umount", str(place)], check=False)


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays_whole(user, mounted):
    runs = mounted("size=2m")
    [full] = drive(user, [fit(fault="Full")])
    line = only_error(full, 2)
    assert "No space left on device" in line
    last = runs / "run/checkpoints/last.ckpt"
    require_undamaged(last)
    assert saved_step(last) in (1, 2)
    assert not list(runs.rglob("*.tmp"))
    (runs / "run/filler").unlink()
    [resumed] = drive(user, [fit("--ckpt_path", "last")])
    assert resumed[0] == 0, resumed[2]
    assert saved_step(last) == 4


def test_a_folder_that_cannot_be_written_is_said_before_training(user, mounted):
    mounted("ro,size=1m")
    cannot = "cannot be written: Read-only file system"
    one, two = drive(user, [fit(), fit("--trainer.default_root_dir", "/proc/run")])
    assert f"trainer.default_root_dir runs/run {cannot}; give one that can" in only_error(one, 2)
    assert "/proc/run cannot be written" in only_error(two, 2)
    assert "trained" not in one[1]  # the table that is printed when training starts


def test_lack_of_memory_is_one_line_with_what_would_need_less(user):
    rows = (user / "rows.jsonl").read_text() * 200
    (user / "rows.jsonl").write_text(rows)
    options = ["--data.batch_size", "4096", "--trainer.precision", "32-true"]
    line = only_error(drive(user, [fit(*options, fault="Memory")])[0], 1)
    for text in (
        r"memory was not enough for a batch of ",
        " tokens in 4096 rows: try data.tokens_per_batch ",
        "(with trainer.accumulate_grad_batches 2 a step has as many tokens)",
        "model.activation_checkpointing true",
        "model.dtype bfloat16",
    ):
        assert text in line


def test_weights_that_are_not_a_number_end_the_run_before_they_are_saved(user):
    line = only_error(drive(user, [fit(fault="NotANumber")])[0], 1)
    assert "the loss of step 2 is nan" in line
    last = user / "runs/run/checkpoints/last.ckpt"
    assert saved_step(last) == 2
    require_undamaged(last)


def test_a_clock_that_jumps_back_changes_no_bit(user):
    root = ["--trainer.default_root_dir"]
    short = ["--trainer.max_steps", "2"]
    results = drive(
        user,
        [
            fit(*root, "whole"),
            fit(*root, "jumped", *short, fault="Clock"),
            fit(*root, "jumped", "--ckpt_path", "last", fault="Clock"),
        ],
    )
    assert [status for status, *_ in results] == [0, 0, 0], results
    whole, jumped = (
        (user / name / "checkpoints/last.ckpt/adapter_model.safetensors").read_bytes()
        for name in ("whole", "jumped")
    )
    assert whole == jumped


def test_a_second_run_in_a_folder_is_refused_and_a_killed_one_does_not_block_it(user):
    first = warm_python.start(
        ["-m", "peft_lightning", *fit(fault="Wait")], cwd=user, env=ENVIRONMENT
    )
    try:
        wait_for(user / "training", seconds=240)
        line = only_error(drive(user, [fit()])[0], 2)
        assert f"another run is training in runs/run, process {first.pid} on " in line
        assert "give --trainer.default_root_dir another folder" in line
    finally:
        first.kill()
        first.wait(60)
    left = user / "runs/run/checkpoints/.last.ckpt.1.another-machine.tmp"
    left.mkdir(parents=True)
    status, _, errors = drive(user, [fit()])[0]
    assert status == 0, errors
    assert not left.exists()
