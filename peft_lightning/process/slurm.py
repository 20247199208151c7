"""The SLURM job that this process was submitted as, and how it is put back into the queue."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable

TEMPORARY_FAILURE = 75  # EX_TEMPFAIL of sysexits.h: to be started again
PATIENCE = 60  # seconds for scontrol's answer: a busy controller takes several
TOKEN = "PEFT_LIGHTNING_JOB"  # set by a job's script to the number of its job


def current_job() -> str | None:
    """Return the number of the job that this run was submitted as; None if there is none.

    A run within a larger job, as in a notebook's or in another program's, is not that job: what
    becomes of it is not for the run to say. ``TOKEN``, which the script of ``submit`` sets, tells
    them apart, and the number tells the job from one that it was submitted in.
    """
    job = os.environ.get("SLURM_JOB_ID")
    return job if job and os.environ.get(TOKEN) == job else None


def is_restarted() -> bool:
    """Whether the job was in the queue before: after a requeue, by us or after a node's crash."""
    return restarts() > 0


def restarts() -> int:
    """Return how often the job was put back into the queue."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def refusal() -> str | None:
    """Return why the job is not to go back into the queue; replaced where that is known."""
    return None


def note_failure(line: str) -> None:
    """Take the error that a start of the job ends with; replaced where that is kept."""


def stop_status(number: int, say: Callable[[str], object], is_alone: bool = False) -> int:
    """Return the exit status of a run that a signal has stopped; its job goes back in the queue.

    Args:
        number: Of the signal. Ctrl-C is for the run and not for the job.
        say: Is told what became of the job, if there is one.
        is_alone: Whether this process answers for itself, and the others of its job may not have
            had the signal. One of them may have failed: then SLURM sends SIGTERM to the rest,
            and a job that went back would fail again, without end.

    Returns:
        128 plus the number outside of a job of ours; else 0 if the job is in the queue, or 75.
    """
    job = current_job()
    if job is None or number == signal.SIGINT:
        return 128 + number
    may_have_lost_one = is_alone and number == signal.SIGTERM and _tasks() > 1
    name, problem = requeue(job, only_preempted=may_have_lost_one)
    if problem is None:
        say(f"job {name} is back in the queue")
        return 0
    say(f"job {name} is not back in the queue ({problem}): to continue, submit it with --resume")
    return TEMPORARY_FAILURE


def _tasks() -> int:
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1)


def requeue(job: str, only_preempted: bool = False) -> tuple[str, str | None]:
    """Put a running job or array task back into the queue.

    A job that ends already is left alone: SLURM would put one back that its user has cancelled.
    Before the first step each process that has a signal does it, and the first of them is enough.

    Args:
        job: As ``current_job`` returns it.
        only_preempted: Leave a job alone that SLURM does not take the nodes from.

    Returns:
        The job as ``scontrol`` names it, with the task of an array; None if that was done, else
        what was in the way.
    """
    name = job
    try:
        shown = _shown(job)
        name = _name(shown, job)
        count = re.search(r"Restarts=(\d+)", shown)
        if count is not None and int(count[1]) > restarts():
            return name, None  # another process of the job did it
        state = re.search(r"JobState=(\w+)", shown)
        if state is None or state[1] != "RUNNING":
            return name, f"it is {state[1] if state else 'unknown'}: cancelled, or out of time"
        if only_preempted and re.search(r"PreemptTime=\d", shown) is None:
            return name, "it is not preempted: another of its processes has ended"
        if (reason := refusal()) is not None:
            return name, reason
        _scontrol("requeue", name)
    except (OSError, subprocess.SubprocessError) as error:
        return name, " ".join((getattr(error, "stderr", None) or str(error)).split())
    return name, None


def state_of(job: str) -> str | None:
    """Return the state of a job as ``scontrol`` names it, None if it does not say.

    Raises:
        OSError: If there is no ``scontrol``.
        subprocess.SubprocessError: If it does not know the job.
    """
    state = re.search(r"JobState=(\w+)", _scontrol("show", "job", "--oneliner", job))
    return state[1] if state else None


def _shown(job: str) -> str:
    """Return what SLURM shows of a job; the number of an array's is that of one of its tasks."""
    lines = _scontrol("show", "job", "--oneliner", job).splitlines()
    return next((line for line in lines if line.startswith(f"JobId={job} ")), "")


def _name(shown: str, job: str) -> str:
    """Return the name of a job, by which a task of an array is meant alone: 17 or 17_3."""
    array = re.search(r"ArrayJobId=(\d+) ArrayTaskId=(\d+) ", shown)
    return f"{array[1]}_{array[2]}" if array else job


def _scontrol(*words: str) -> str:
    """Run ``scontrol``, which the signal that is being answered would otherwise end as well."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    try:
        return subprocess.run(
            ["scontrol", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE,
        ).stdout
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
