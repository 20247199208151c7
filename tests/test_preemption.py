"""A stop signal ends training at a step boundary, and the run goes on from there."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

from cli_driver import ENVIRONMENT, saved_step
from peft_lightning.checkpoint import Checkpoints
from test_cli import MODEL
from tiny_run import fit

CONFIG = """
data: {train: rows.jsonl, batch_size: 2, cache_dir: cache, num_workers: WORKERS}
trainer:
  max_steps: 30
  max_epochs: -1
  accelerator: cpu
  accumulate_grad_batches: ACCUMULATE
  enable_progress_bar: false
  callbacks: [{class_path: slow.Slow}]
"""

SLOW = '''
"""Training slow enough to be stopped in the middle."""

import os
import time

from lightning.pytorch.callbacks import Callback


class Slow(Callback):
    def on_train_batch_end(self, *args):
        if os.environ.get("SLOW"):
            print("batch", flush=True)
            time.sleep(0.05)
'''


@pytest.fixture
def user(tmp_path, base, rows):
    (tmp_path / "rows.jsonl").write_text(rows.read_text())
    (tmp_path / "slow.py").write_text(SLOW)
    return tmp_path


def command(user, base, folder, *options, workers=0, accumulate=1):
    model = MODEL.replace("BASE", str(base)) + ", adapter: {class_path: LoRA, init_args: {r: 2}}}"
    text = CONFIG.replace("WORKERS", str(workers)).replace("ACCUMULATE", str(accumulate))
    (user / "run.yaml").write_text(model + text)
    start = [sys.executable, "-m", "peft_lightning", "fit", "--config", "run.yaml"]
    return [*start, "--trainer.default_root_dir", folder, *options]


def stop_after(process, batches):
    """Send SIGTERM once as many batches were trained."""
    for line in process.stdout:
        batches -= line == "batch\n"
        if batches == 0:
            process.send_signal(signal.SIGTERM)
            return


@pytest.mark.parametrize(("workers", "accumulate"), [(0, 1), (2, 4)])
def test_a_stopped_run_goes_on_to_the_same_weights(user, base, workers, accumulate):
    options = {"workers": workers, "accumulate": accumulate}
    run = {"cwd": user, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    slow = subprocess.Popen(
        command(user, base, "stopped", **options), env={**ENVIRONMENT, "SLOW": "1"}, **run
    )
    stop_after(slow, 7)
    _, errors = slow.communicate(timeout=60)
    assert slow.returncode == 128 + signal.SIGTERM, errors
    assert "SIGTERM: stopping after this optimizer step" in errors
    assert errors.count("SIGTERM") == 1  # the workers say nothing
    last = user / "stopped" / "checkpoints" / "last.ckpt"
    state = torch.load(last / "trainer_state.pt", weights_only=True)
    assert 7 // accumulate <= state["global_step"] < 30
    loop = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    assert loop["ready"] % accumulate == 0 or loop["ready"] == 12  # 23 rows, batches of 2

    for folder, more in (("stopped", ["--ckpt_path", "last"]), ("whole", [])):
        done = subprocess.run(
            command(user, base, folder, *more, **options), env=ENVIRONMENT, timeout=120, **run
        )
        assert done.returncode == 0, done.stderr
    ours, whole = (
        load_file(user / name / "checkpoints" / "last.ckpt" / "adapter_model.safetensors")
        for name in ("stopped", "whole")
    )
    assert ours.keys() == whole.keys()
    assert all(torch.equal(ours[name], whole[name]) for name in whole)


def test_a_second_ctrl_c_ends_at_once(user, base):
    process = subprocess.Popen(
        command(user, base, "twice", accumulate=1000),
        cwd=user,
        env={**ENVIRONMENT, "SLOW": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line == "batch\n":
            break
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors


def test_sigterm_during_the_imports_ends_after_the_first_step_with_its_status(user, base):
    process = subprocess.Popen(
        command(user, base, "early"), cwd=user, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "stopped at step 1;" in errors


def test_signals_after_the_last_step_leave_the_status_of_success(user, base):
    process = subprocess.Popen(
        command(user, base, "late", "--trainer.max_steps", "1"),
        cwd=user,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if "`Trainer.fit` stopped" in line:
            break
    while process.poll() is None:  # also while Python shuts down, which takes handlers away
        process.send_signal(signal.SIGUSR1)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.002)
    assert process.returncode == 0, process.stderr.read()


def test_all_processes_stop_when_one_has_a_signal_and_the_first_tells_which(user, base):
    process = subprocess.Popen(
        command(user, base, "two", "--trainer.devices", "2", "--trainer.strategy", "ddp"),
        cwd=user,
        env={**ENVIRONMENT, "SLOW": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.stdout.readline() != "batch\n":
        assert process.poll() is None
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [c for c in children if b"peft_lightning" in Path(f"/proc/{c}/cmdline").read_bytes()]
    assert len(ranks) == 1
    os.kill(int(ranks[0]), signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "is saved" in errors


class Disturbed(Callback):
    """Notes each step and each finished validation, and is stopped in one."""

    def __init__(self, rows, stop_at=None, how=None):
        self.rows, self.stop_at, self.how = rows, stop_at, how

    def on_train_batch_end(self, trainer, *args):
        self.rows.append(trainer.global_step)

    def on_validation_batch_end(self, trainer, *args):
        if trainer.global_step == self.stop_at:
            if self.how == "crash":
                raise RuntimeError("a crash")
            os.kill(os.getpid(), signal.SIGTERM)

    def on_validation_end(self, trainer, pl_module):
        self.rows.append((trainer.global_step, float(trainer.callback_metrics["val/loss"])))


SETUPS = {
    "within an epoch": ({"val_check_interval": 2, "max_epochs": 2}, 4),
    "an epoch's": ({"max_epochs": 3}, 6),
    "the last": ({"max_epochs": 2}, 12),
    "with max_steps": ({"max_epochs": -1, "max_steps": 14}, 12),
}


@pytest.mark.parametrize("how", ["signal", "crash"])
@pytest.mark.parametrize("setup", SETUPS)
def test_a_validation_that_was_cut_off_is_made_after_the_resume(setup, how, base, rows, tmp_path):
    trainer, step = SETUPS[setup]

    def run(name, *stop, **more):
        callbacks = [Disturbed(seen.setdefault(name, []), *stop), Checkpoints(every_n_steps=2)]
        return fit(base, rows, tmp_path / name, callbacks=callbacks, **trainer, **more)

    seen = {}
    whole = run("whole")
    with pytest.raises(SystemExit if how == "signal" else RuntimeError) as error:
        run("cut", step, how)
    assert how == "crash" or error.value.code == 128 + signal.SIGTERM
    resumed = run("cut", ckpt_path=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert (step, pytest.approx(0, abs=100)) in seen["whole"]
    assert seen["cut"] == seen["whole"]
    ours, theirs = (t.lightning_module.state_dict() for t in (resumed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_that_is_stopped_early_every_time_makes_a_step_every_time(base, rows, tmp_path):
    last = None
    for step in (6, 7):  # the second run begins with the validation that the first was stopped in
        callbacks = [Disturbed([], 6, "signal"), Checkpoints()]
        with pytest.raises(SystemExit):
            fit(base, rows, tmp_path, callbacks=callbacks, max_epochs=3, ckpt_path=last)
        last = tmp_path / "checkpoints" / "last.ckpt"
        assert saved_step(last) == step
