"""The SLURM job that this process belongs to, and how it is put back into the queue."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable

TEMPORARY_FAILURE = 75  # EX_TEMPFAIL of sysexits.h: to be started again
PATIENCE = 60  # seconds for scontrol's answer: a busy controller takes several


def current_job() -> str | None:
    """Return the job's id as ``scontrol`` takes it, with the task of an array: 17 or 17_3."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def is_restarted() -> bool:
    """Whether the job was in the queue before: after a requeue, by us or after a node's crash."""
    return _restarts() > 0


def _restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def stop_status(number: int, say: Callable[[str], object], is_alone: bool = False) -> int:
    """Return the exit status of a run that a signal has stopped; its job goes back in the queue.

    Args:
        number: Of the signal. Ctrl-C is for the run and not for the job.
        say: Is told what became of the job, if there is one.
        is_alone: Whether this process answers for itself, and the others of its job may not have
            had the signal. One of them may have failed: then SLURM sends SIGTERM to the rest,
            and a job that went back would fail again, without end.

    Returns:
        128 plus the number outside of SLURM; else 0 if the job is in the queue, or 75.
    """
    job = current_job()
    if job is None or number == signal.SIGINT:
        return 128 + number
    may_have_lost_one = is_alone and number == signal.SIGTERM and _tasks() > 1
    problem = requeue(job, only_preempted=may_have_lost_one)
    if problem is None:
        say(f"job {job} is back in the queue")
        return 0
    say(
        f"job {job} is not back in the queue ({problem}): to continue, submit it again with "
        "--ckpt_path last"
    )
    return TEMPORARY_FAILURE


def _tasks() -> int:
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1)


def requeue(job: str, only_preempted: bool = False) -> str | None:
    """Put a running job or array task back into the queue.

    A job that ends already is left alone: SLURM would put one back that its user has cancelled.
    Before the first step each process that has a signal does it, and the first of them is enough.

    Args:
        job: As ``current_job`` returns it.
        only_preempted: Leave a job alone that SLURM does not take the nodes from.

    Returns:
        None if that was done, else what was in the way.
    """
    try:
        shown = _scontrol("show", "job", "--oneliner", job)
        restarts = re.search(r"Restarts=(\d+)", shown)
        if restarts is not None and int(restarts[1]) > _restarts():
            return None  # another process of the job did it
        state = re.search(r"JobState=(\w+)", shown)
        if state is None or state[1] != "RUNNING":
            return f"it is {state[1] if state else 'unknown'}: cancelled, or out of time"
        if only_preempted and re.search(r"PreemptTime=\d", shown) is None:
            return "it is not preempted: another of its processes has ended"
        _scontrol("requeue", job)
    except (OSError, subprocess.SubprocessError) as error:
        return " ".join((getattr(error, "stderr", None) or str(error)).split())
    return None


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
