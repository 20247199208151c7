"""A stop signal ends training at a step boundary, and the run goes on from there."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from cli_driver import ENVIRONMENT
from test_cli import MODEL

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
