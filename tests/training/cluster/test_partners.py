"""A process that fails is the only one to say so, and takes the others with it."""

import os
import signal

import pytest

import warm_python
from cli_driver import ENVIRONMENT

CONFIG = """
model: {{base_model: {base}, adapter: {{class_path: LoRA, init_args: {{r: 2}}}}}}
data: {{train: {rows}, batch_size: 2, cache_dir: cache, num_workers: 0}}
trainer:
  devices: 2
  accelerator: cpu
  max_epochs: 1
  enable_progress_bar: false
  callbacks: [{{class_path: failing.Fail}}]
"""
FAIL = """
import os, signal
from lightning.pytorch.callbacks import Callback
from peft_lightning.messages import UserError


class Fail(Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 2 and trainer.global_rank == 1:
            if os.environ["FAILURE"] == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise {"refused": UserError, "broken": KeyError}[os.environ["FAILURE"]]("no such row")
"""


@pytest.mark.parametrize(
    ("failure", "strategy", "status", "message"),
    [
        ("refused", "ddp", 2, "error: process 1 on {host}: no such row"),
        (
            "broken",
            "fsdp2",
            1,
            "error: process 1 on {host}: Fail.on_train_batch_end (failing.py, line 12) raised",
        ),
        ("killed", "fsdp2", 1, "error: another process of this run has ended without a word"),
    ],
)
def test_the_reason_of_the_process_that_failed_is_the_one_that_is_told(
    base, rows, tmp_path, failure, strategy, status, message
):
    (tmp_path / "failing.py").write_text(FAIL)
    (tmp_path / "run.yaml").write_text(CONFIG.format(base=base, rows=rows))
    command = ["-m", "peft_lightning", "fit", "--config", "run.yaml", "--trainer.strategy"]
    environment = {**ENVIRONMENT, "FAILURE": failure}
    done = warm_python.run([*command, strategy], cwd=tmp_path, env=environment)
    if done.returncode == -signal.SIGKILL:  # Lightning's observer was first, on a busy machine
        assert failure == "killed"
        return
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 1, done.stderr
    assert told[0].startswith(message.format(host=os.uname().nodename))
    assert "Traceback" not in done.stderr
    assert done.returncode == status
