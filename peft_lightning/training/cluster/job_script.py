"""The script of a SLURM job that trains: written as text, and submitted."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from peft_lightning.messages import UserError
from peft_lightning.process.slurm import TOKEN
from peft_lightning.training.cluster.job_environment import environment_for_sbatch

TASK = "%a"  # the number of an array's task, as in sbatch's own file names
WARNING = 120  # seconds before the end of its time at which a run saves and is requeued


def render(flags: Mapping[str, Any], more: Iterable[str], fit: Iterable[str]) -> str:
    """Return a job's script; ``scripts/train.sbatch`` says what its lines are for.

    Args:
        flags: Options of sbatch; those that are None are left out.
        more: Further ones, as written.
        fit: The command line of fit; ``%a`` in it is the number of the array's task.

    Raises:
        UserError: If an option of sbatch has control characters, which could become commands.
    """
    lines = ["#!/usr/bin/env bash"]
    lines += [f"#SBATCH --{k}={shlex.quote(str(v))}" for k, v in flags.items() if v is not None]
    lines += ["#SBATCH --requeue", "#SBATCH --open-mode=append", f"#SBATCH --signal=USR1@{WARNING}"]
    lines += [f"#SBATCH {option}" for option in more]
    if wrong := [line for line in lines if not line.isprintable()]:
        raise UserError(
            f"{wrong[0]!r}: a job's options cannot have control characters, as newlines"
        )
    if flags.get("cpus-per-task") is not None:  # since 22.05 srun does not take them from sbatch
        lines.append('export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"')
    lines.append(f'export {TOKEN}="$SLURM_JOB_ID"')  # what this run may put back into the queue
    words = [sys.executable, "-m", "peft_lightning", "fit", *fit]
    lines.append(f"exec srun --kill-on-bad-exit=1 {' '.join(map(_quoted, words))}")
    return "\n".join(lines) + "\n"


def _quoted(word: str) -> str:
    """Quote ``word`` for the shell, with the number of the task where ``%a`` stands."""
    parts = word.split(TASK)
    if len(parts) == 1:
        return shlex.quote(word)
    return '"$SLURM_ARRAY_TASK_ID"'.join(shlex.quote(part) if part else "" for part in parts)


def array_tasks(array: str) -> list[int]:
    """Return the numbers of ``0-3``, ``1,5``, ``0-8:2``; behind a ``%`` stands how many at once.

    Raises:
        UserError: If that is no array.
    """
    found: list[int] = []
    for part in re.sub(r"%[1-9]\d*$", "", array).split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::([1-9]\d*))?)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if match is None or last < first:
            raise UserError(f"--array {array}: write the tasks as 0-3, 1,5 or 0-8:2, or 0-99%4")
        found += range(first, last + 1, int(match[3] or 1))
    return found


def submit_script(
    script: str, folders: Iterable[Path], say: Callable[[str], object] = lambda line: None
) -> str:
    """Submit a job and return its number.

    Args:
        script: The job's script.
        folders: Made before, since SLURM does not make the log's.
        say: Is told which ``SBATCH_*`` variables are heeded and which are not.

    Raises:
        UserError: If there is no SLURM here, or it refuses the job; says what it says.
    """
    require_sbatch()
    environment, lines = environment_for_sbatch(re.findall(r"(?m)^#SBATCH --([\w-]+)", script))
    for line in lines:
        say(line)
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    command = ["sbatch", "--parsable"]
    done = subprocess.run(
        command, input=script, capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise UserError(f"sbatch refuses the job: {' '.join(done.stderr.split())}")
    return done.stdout.strip().partition(";")[0]


def require_sbatch() -> None:
    """Raise UserError if there is no SLURM here."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "there is no sbatch here: submit on a login node of the cluster; --dry-run prints "
            "the script"
        )


def partitions() -> list[list[str]]:
    """Return the partitions as ``sinfo`` shows them: name, nodes, CPUs; none if it cannot say."""
    command = ["sinfo", "--noheader", "--format=%P %D %c"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return [line.split() for line in done.stdout.splitlines()]
    return []
