"""A SLURM cluster as a test sees it: jobs, their processes, logs and traces; nodes to crash."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
ENDS = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
PATIENCE = 300  # seconds for anything: imports alone may take 30 s on a busy machine

CONFIG = """
model:
  base_model: {base}
  learning_rate: 1.0e-2
  adapter: {{class_path: LoRA, init_args: {{r: 2, lora_dropout: 0.1}}}}
data: {{train: {rows}, val: {rows}, batch_size: 2, cache_dir: {folder}/cache, num_workers: 1}}
trainer:
  max_epochs: 12
  accelerator: cpu
  enable_progress_bar: false
  callbacks:
  - {{class_path: step_trace.StepTrace}}
  - class_path: peft_lightning.training.checkpoint.AdapterCheckpoint
    init_args: {{every_n_steps: 3}}
"""


def wait_until(true: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Return what ``true`` returns as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return found


class Cluster:
    """A running cluster; ``environment`` is what its commands need."""

    def __init__(self, environment: dict[str, str], folder: Path, base: Path, rows: Path) -> None:
        self.environment, self.folder = environment, folder
        self.started: list[subprocess.Popen[bytes]] = []
        self.config = folder / "run.yaml"
        self.config.write_text(CONFIG.format(base=base, rows=rows, folder=folder))

    def call(self, *command: str) -> str:
        """Run a command of SLURM's and return its output."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def train(
        self, name: str, *sbatch: str, options: tuple[str, ...] = (), **delays: float
    ) -> "Job":
        """Submit ``scripts/train.sbatch``; the run's folder is called ``name``."""
        root = self.folder / name
        root.mkdir(exist_ok=True)
        exported = {"MASTER_PORT": _free_port(), **delays}  # or two clusters' jobs would collide
        export = ",".join(["ALL", *(f"{key}={value}" for key, value in exported.items())])
        command = ["sbatch", "--parsable", f"--job-name={name}", f"--output={root}/log"]
        command += [f"--export={export}", *sbatch]
        command += [str(ROOT / "scripts" / "train.sbatch"), str(self.config)]
        command += ["--trainer.default_root_dir", str(root)]
        return Job(self, self.call(*command), root)

    def submit(self, name: str, *options: str, **variables: str) -> subprocess.CompletedProcess:
        """Run ``submit`` as a user would; the run's folder is called ``name``."""
        command = [sys.executable, "-m", "peft_lightning", "submit", "--config", str(self.config)]
        command += ["--trainer.default_root_dir", str(self.folder / name), *options]
        environment = {**self.environment, "MASTER_PORT": str(_free_port()), **variables}
        return subprocess.run(
            command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=180
        )

    def script(self, name: str, text: str, *sbatch: str) -> "Job":
        """Submit a script of a user's own; its log is in a folder of that name."""
        root = self.folder / name
        root.mkdir(exist_ok=True)
        (root / "script.sh").write_text(f"#!/bin/bash\n{text}")
        output = f"--output={root}/log"
        command = ["sbatch", "--parsable", output, *sbatch, str(root / "script.sh")]
        return Job(self, self.call(*command), root)

    def start(self, node: str) -> None:
        """Bring back a node that has crashed; it ends with the cluster."""
        process = subprocess.Popen(
            ["start_node", node], env=self.environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.started.append(process)

    def crash(self, node: str) -> None:
        """Kill everything that runs on a node, its daemon first."""
        spaces: dict[int, str] = {}
        daemon = None
        for process in _processes():
            with contextlib.suppress(OSError):
                spaces[int(process.name)] = os.readlink(process / "ns" / "uts")
                command = (process / "cmdline").read_bytes().split(b"\0")
                ours = self.environment["SLURM_CONF"].encode() in (process / "environ").read_bytes()
                if ours and command[0].endswith(b"slurmd-wlm") and node.encode() in command:
                    daemon = int(process.name)
        assert daemon is not None
        space = spaces[daemon]
        assert space != os.readlink("/proc/self/ns/uts"), "the nodes have no namespaces"
        for process in [daemon, *(p for p, s in spaces.items() if s == space and p != daemon)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _processes() -> list[Path]:
    return [path for path in Path("/proc").iterdir() if path.name.isdigit()]


class Job:
    """A submitted job; its run is in ``root``."""

    def __init__(self, cluster: Cluster, number: str, root: Path) -> None:
        self.cluster, self.number, self.root = cluster, number, root

    def show(self, key: str) -> str:
        """Return what ``scontrol show job`` says of ``key``."""
        text = self.cluster.call("scontrol", "show", "job", "--oneliner", self.number)
        return next(w.partition("=")[2] for w in text.split() if w.startswith(f"{key}="))

    @property
    def restarts(self) -> int:
        return int(self.show("Restarts"))

    def log(self) -> str:
        files = [*self.root.glob("*log*"), *self.root.glob("slurm-*.out")]
        return "".join(file.read_text() for file in files if file.is_file())

    def trace(self, rank: int = 0) -> list[dict[str, Any]]:
        file = self.root / f"trace.{rank}"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def wait(self, state: str = "COMPLETED") -> None:
        """Wait for the end, and for it to be ``state``."""
        found = wait_until(
            lambda: (now := self.show("JobState")) in ENDS and now, f"end of {self.root.name}"
        )
        assert found == state, f"{found}: {self.log()}"

    def wait_for_start(self, restarts: int = 0) -> None:
        """Wait until the job runs for the time after so many restarts."""

        def is_started() -> bool:
            state = self.show("JobState")
            assert state not in ENDS, self.log()
            return state == "RUNNING" and self.restarts == restarts

        wait_until(is_started, f"{self.root.name} running after {restarts} restarts")

    def wait_for_steps(self, count: int) -> None:
        """Wait until so many lines are in the trace."""
        wait_until(lambda: len(self.trace()) >= count, f"{count} steps of {self.root.name}")

    def wait_for_ranks(self, count: int) -> dict[int, int]:
        """Return the process of each rank, once all of them note signals."""
        return wait_until(
            lambda: len(found := self.ranks()) == count and found, f"{count} ranks listening"
        )

    def ranks(self) -> dict[int, int]:
        """Return the process id of each rank that notes SIGUSR1."""
        found = {}
        for process in _processes():
            with contextlib.suppress(OSError, StopIteration):
                command = (process / "cmdline").read_bytes()
                if b"peft_lightning\0fit" not in command:
                    continue
                if str(self.cluster.folder).encode() not in command:  # another cluster's
                    continue
                status = dict(
                    line.split(":\t", 1) for line in (process / "status").read_text().splitlines()
                )
                variables = (process / "environ").read_bytes().split(b"\0")
                parent = (Path("/proc") / status["PPid"] / "cmdline").read_bytes()
                listens = int(status["SigCgt"], 16) >> (signal.SIGUSR1 - 1) & 1
                is_worker = b"peft_lightning\0fit" in parent and b"srun" not in parent
                if (
                    f"SLURM_JOB_ID={self.number}".encode() in variables
                    and listens
                    and not is_worker
                ):
                    rank = next(v for v in variables if v.startswith(b"SLURM_PROCID="))
                    found[int(rank.partition(b"=")[2])] = int(process.name)
        return found

    def send(self, name: str) -> None:
        """Send a signal to all processes of the running step, data workers too."""
        with contextlib.suppress(AssertionError):  # it may just have ended
            self.cluster.call("scancel", f"--signal={name}", f"{self.show('JobId')}.0")

    def cancel(self) -> None:
        self.cluster.call("scancel", self.number)

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.root / "checkpoints" / "last.ckpt" / "adapter_model.safetensors")
