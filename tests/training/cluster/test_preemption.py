"""A stop signal ends training, and the run goes on from there; test_stop.py has each phase."""

import contextlib
import copy
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

import warm_python
from cli_driver import ENVIRONMENT, saved_step
from peft_lightning import CausalLMModule, PromptTuning
from peft_lightning.process.signals import STOP, StopSignal
from peft_lightning.training.checkpoint import AdapterCheckpoint
from peft_lightning.training.cluster.preemption import _see_signals_in_backward
from peft_lightning.training.cluster.step_boundary import step_boundary
from test_cli import MODEL
from tiny_run import fit, flat_batch

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
import signal
import time

from lightning.pytorch.callbacks import Callback


class Slow(Callback):
    def on_train_batch_end(self, *args):
        if os.environ.get("SLOW"):
            print("batch", flush=True)
            time.sleep(0.05)


class Fails(Callback):
    """Fails after a step, and has a signal before the process has ended."""

    def on_train_batch_end(self, trainer, *args):
        teardown = trainer.strategy.teardown

        def signalled():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            teardown()

        trainer.strategy.teardown = signalled
        raise RuntimeError("an odd error")
'''

TOKENISES_SLOWLY = """

def row(record):
    print("tokenizing", flush=True)
    time.sleep(60)
    return record["prompt"]
"""


PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


@pytest.fixture
def user(tmp_path, base, rows):
    (tmp_path / "rows.jsonl").write_text(rows.read_text())
    (tmp_path / "slow.py").write_text(SLOW)
    return tmp_path


def command(user, base, folder, *options, workers=0, accumulate=1):
    """Return the arguments of Python that train in ``folder``."""
    model = MODEL.replace("BASE", str(base)) + ", adapter: {class_path: LoRA, init_args: {r: 2}}}"
    text = CONFIG.replace("WORKERS", str(workers)).replace("ACCUMULATE", str(accumulate))
    (user / "run.yaml").write_text(model + text)
    start = ["-m", "peft_lightning", "fit", "--config", "run.yaml"]
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
    steps = 32 // accumulate
    until = ["--trainer.max_steps", str(steps)]
    slow = warm_python.start(
        command(user, base, "stopped", *until, **options),
        cwd=user,
        env={**ENVIRONMENT, "SLOW": "1"},
        **PIPES,
    )
    stop_after(slow, 7)
    _, errors = slow.communicate(timeout=60)
    assert slow.returncode == 128 + signal.SIGTERM, errors
    assert "SIGTERM: stopped at step " in errors
    assert errors.count("SIGTERM") == 1  # the workers say nothing
    last = user / "stopped" / "checkpoints" / "last.ckpt"
    state = torch.load(last / "trainer_state.pt", weights_only=True)
    assert 7 // accumulate <= state["global_step"] < steps
    loop = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    assert loop["ready"] % accumulate == 0 or loop["ready"] == 12  # 23 rows, batches of 2

    for folder, more in (("stopped", ["--ckpt_path", "last"]), ("whole", [])):
        arguments = command(user, base, folder, *until, *more, **options)
        done = warm_python.run(arguments, cwd=user, env=ENVIRONMENT)
        assert done.returncode == 0, done.stderr
    ours, whole = (
        load_file(user / name / "checkpoints" / "last.ckpt" / "adapter_model.safetensors")
        for name in ("stopped", "whole")
    )
    assert ours.keys() == whole.keys()
    assert all(torch.equal(ours[name], whole[name]) for name in whole)


def test_a_second_ctrl_c_ends_at_once(user, base):
    process = warm_python.start(
        command(user, base, "twice", accumulate=1000),
        cwd=user,
        env={**ENVIRONMENT, "SLOW": "1"},
        **PIPES,
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


def listens(process):
    """Whether a process has a handler for SIGUSR1."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return int(caught.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1


def imports_torch(process):
    return "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("moment", [listens, imports_torch])
def test_a_signal_during_the_imports_ends_at_once_in_one_line(moment, number, user, base):
    fresh = [sys.executable, *command(user, base, "early")]
    process = subprocess.Popen(fresh, cwd=user, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while not moment(process):
        time.sleep(0.002)
        assert process.poll() is None
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number, errors
    assert errors == f"{number.name}: stopped before the first step, nothing new to save\n"


def test_signals_after_the_last_step_leave_the_status_of_success(user, base):
    process = warm_python.start(
        command(user, base, "late", "--trainer.max_steps", "1"),
        cwd=user,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
    )
    for line in process.stderr:
        if "`Trainer.fit` stopped" in line:
            break
    while process.poll() is None:  # also while Python shuts down, which takes handlers away
        process.send_signal(signal.SIGUSR1)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.002)
    assert process.returncode == 0, process.stderr.read()


def test_a_run_that_fails_has_failed_even_if_a_signal_meets_its_end(user, base):
    fails = ["--trainer.callbacks+", "slow.Fails"]
    done = warm_python.run(command(user, base, "fails", *fails), cwd=user, env=ENVIRONMENT)
    assert done.returncode == 1, done.stderr
    assert "raised RuntimeError: an odd error; --debug" in done.stderr.splitlines()[-1]
    assert "stopped" not in done.stderr


def test_all_processes_stop_when_one_has_a_signal_and_the_first_tells_which(user, base):
    process = warm_python.start(
        command(user, base, "two", "--trainer.devices", "2", "--trainer.strategy", "ddp"),
        cwd=user,
        env={**ENVIRONMENT, "SLOW": "1"},
        **PIPES,
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
        callbacks = [
            Disturbed(seen.setdefault(name, []), *stop),
            AdapterCheckpoint(every_n_steps=2),
        ]
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


def test_a_run_that_is_stopped_in_the_validation_it_begins_with_loses_nothing(base, rows, tmp_path):
    last = None
    for _ in range(2):  # the second run begins with the validation that the first was stopped in
        callbacks = [Disturbed([], 6, "signal"), AdapterCheckpoint()]
        with pytest.raises(SystemExit):
            fit(base, rows, tmp_path, callbacks=callbacks, max_epochs=3, ckpt_path=last)
        last = tmp_path / "checkpoints" / "last.ckpt"
        assert saved_step(last) == 6
    seen: list = []
    callbacks = [Disturbed(seen), AdapterCheckpoint()]
    fit(base, rows, tmp_path, callbacks=callbacks, max_epochs=3, ckpt_path=last)
    assert [row if isinstance(row, int) else row[0] for row in seen] == [
        6,
        *range(7, 13),
        12,
        *range(13, 19),
        18,
    ]


def test_a_signal_is_seen_between_two_layers_of_a_backward_pass_without_python(base):
    module = CausalLMModule(str(base), PromptTuning(num_virtual_tokens=2))
    module.configure_model()
    STOP.listen(signal.SIGTERM)
    hooks = _see_signals_in_backward(module)
    try:
        loss, _ = module.nll(flat_batch([9, 5]))
        STOP.received = signal.SIGTERM  # as one that was caught on its way
        with pytest.raises(StopSignal):
            loss.backward()
    finally:
        STOP.forget([signal.SIGTERM])
    for hook in hooks:
        hook.remove()
    module.nll(flat_batch([9, 5]))[0].backward()


def test_what_is_remembered_of_a_step_is_not_changed_by_the_next(base, rows, tmp_path):
    found = []

    class Remember(Callback):
        def on_train_batch_end(self, trainer, *args):
            state = step_boundary(trainer)
            found.append((state, copy.deepcopy(state)))

    fit(base, rows, tmp_path, callbacks=[Remember()], max_epochs=1)
    assert len(found) == 6
    for state, at_the_time in found:
        assert str(state) == str(at_the_time)
    positions = [state["SFTDataModule"]["finished_batches"] for state, _ in found]
    assert positions == [1, 2, 3, 4, 5, 6]


def test_a_signal_while_two_processes_start_ends_both(user, base):
    (user / "slow.py").write_text(SLOW + TOKENISES_SLOWLY)
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    process = warm_python.start(
        command(user, base, "both", *two, "--data.format", "slow.row"),
        cwd=user,
        env=ENVIRONMENT,
        **PIPES,
    )
    while process.stdout.readline() != "tokenizing\n":
        assert process.poll() is None
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert errors.count("SIGTERM: stopped before the first step") == 1
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{child}/fd").exists() and is_ours(child) for child in children):
        assert time.monotonic() < deadline


def is_ours(process):
    with contextlib.suppress(OSError):
        return b"peft_lightning" in Path(f"/proc/{process}/cmdline").read_bytes()
    return False
