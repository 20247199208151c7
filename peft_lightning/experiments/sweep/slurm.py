"""A sweep as an array of SLURM jobs: a task for each point that is to be trained."""

from __future__ import annotations

import getpass
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from peft_lightning.experiments.sweep.process import last_line
from peft_lightning.experiments.sweep.state import (
    CONFIG,
    FAILED,
    FINISHED,
    LOG,
    QUEUED,
    PointState,
    SweepState,
)
from peft_lightning.messages import UserError
from peft_lightning.training.cluster.job_script import TASK

TASKS = "tasks"  # folder of links to each point's config and log, by the number of its task


def task_number(state: SweepState, point: PointState) -> int:
    """Return the number of a point's task: its place in ``sweep.json``, which does not change."""
    return list(state.points).index(point.name)


def to_submit(state: SweepState) -> list[PointState]:
    """Return the points that are neither finished nor in the queue."""
    return [p for p in state.asked_points() if p.status not in (FINISHED, QUEUED)]


def array_of(state: SweepState, points: Iterable[PointState], at_once: int | None) -> str:
    """Return the tasks as sbatch takes them, ``0,2,5%2``.

    Args:
        state: The sweep.
        points: To train.
        at_once: How many tasks may run at the same time; None for all.
    """
    numbers = ",".join(str(task_number(state, point)) for point in points)
    return numbers + (f"%{at_once}" if at_once else "")


def log_pattern(state: SweepState) -> str:
    """Return the file that SLURM writes the output of a task to."""
    return f"{state.folder}/{TASKS}/{TASK}.log"


def fit_words(state: SweepState) -> list[str]:
    """Return the options of ``fit`` in a task."""
    return ["--config", f"{state.folder}/{TASKS}/{TASK}.yaml", "--ckpt_path", "last"]


def link_tasks(state: SweepState, points: Iterable[PointState]) -> None:
    """Make the links by which a task finds the config of its point, and SLURM the log.

    They are to files: a link to a run's folder would be a second run for whoever looks for runs.
    """
    folder = state.folder / TASKS
    folder.mkdir(parents=True, exist_ok=True)
    for point in points:
        state.log(point).touch()
        for end, name in ((".yaml", CONFIG), (".log", LOG)):
            link = folder / f"{task_number(state, point)}{end}"
            link.unlink(missing_ok=True)
            link.symlink_to(Path("..") / point.name / name)


def note_submitted(state: SweepState, points: Iterable[PointState], job: str) -> None:
    """Note the job of points that have been submitted."""
    for point in points:
        point.status, point.error = QUEUED, None
        point.job = f"{job}_{task_number(state, point)}"
    state.save()


def settle_queued(state: SweepState) -> None:
    """Find out which points are still in the queue; those that left it unfinished have failed.

    Raises:
        UserError: If there are some and SLURM cannot be asked.
    """
    queued = [p for p in state.points.values() if p.status == QUEUED]
    if not queued:
        return
    there = _tasks_in_queue()
    for point in queued:
        if point.job not in there:
            point.status = FAILED
            point.attempts += 1
            point.error = last_line(state.log(point)) or f"job {point.job} left no output"


def require_none_queued(points: Sequence[PointState]) -> None:
    """Raise UserError if points wait in SLURM's queue, which would be trained twice."""
    if queued := [point.job for point in points if point.status == QUEUED]:
        raise UserError(
            f"{len(queued)} points are in SLURM's queue, such as job {queued[0]}: give --slurm, or "
            "scancel them first"
        )


def _tasks_in_queue() -> set[str]:
    """Return the jobs of this user in the queue, running or not, as 12_3."""
    command = ["squeue", "--noheader", "--array", "--format=%i", "--user", getpass.getuser()]
    problem = "there is no squeue here: run the command on a login node of the cluster"
    with suppress(FileNotFoundError):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return set(done.stdout.split())
        problem = f"squeue cannot say what is in the queue: {' '.join(done.stderr.split())}"
    raise UserError(problem)
