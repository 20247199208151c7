"""The SLURM job of a sweep: an array, with a task for each point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_lightning.cli.config_index import read_arguments
from peft_lightning.cli.job_options import (
    check_job_options,
    checked_name,
    name_of_folder,
    processes_of,
)
from peft_lightning.experiments.sweep.slurm import (
    array_of,
    fit_words,
    link_tasks,
    log_pattern,
    note_submitted,
    to_submit,
)
from peft_lightning.experiments.sweep.state import CONFIG, SweepState
from peft_lightning.messages import UserError
from peft_lightning.training.cluster.job_script import render, submit_script


@dataclass(frozen=True)
class Job:
    """What the command line says of the job.

    Args:
        nodes: Of a point; None for trainer.num_nodes.
        gpus: Of each node.
        name: Of the job; None for that of the sweep's folder.
        flags: Of sbatch; those that are None are left out.
        sbatch: Further ones, as written.
        at_once: How many points may train at the same time; None for all.
    """

    nodes: int | None
    gpus: int | None
    name: str | None
    flags: dict[str, Any]
    sbatch: list[str]
    at_once: int | None

    def __post_init__(self) -> None:
        check_job_options(
            self.flags["time"], self.sbatch, self.flags.get("mem"), self.flags.get("cpus-per-task")
        )


def submit_points(
    state: SweepState, job: Job, extra: list[str], say: Callable[[str], object]
) -> None:
    """Submit the points that are neither finished nor in the queue.

    Args:
        state: The sweep, whose points have their configs.
        job: Of the command line.
        extra: Further options of ``fit``.
        say: Takes a line for the user.

    Raises:
        UserError: If the points need different numbers of processes, or SLURM refuses the job.
    """
    points = to_submit(state)
    if not points:
        return
    folder = str(state.folder)
    if any(character in folder for character in " \t$`\"'\\%"):
        raise UserError(f"--dir {folder!r}: write the folder without spaces and variables")
    configs = [read_arguments(["--config", str(state.path(p) / CONFIG)]) for p in points]
    sizes = {processes_of(config, job.nodes, job.gpus) for config in configs}
    if len(sizes) > 1:
        raise UserError(
            "the points differ in trainer.num_nodes or trainer.devices: one array has one number"
        )
    nodes, processes = sizes.pop()
    flags = {
        "job-name": checked_name(job.name or name_of_folder(state.folder.name)),
        "chdir": Path.cwd(),
        "output": log_pattern(state),
        "array": array_of(state, points, job.at_once),
        "nodes": nodes,
        "ntasks-per-node": processes,
        "gpus-per-node": job.gpus,
        **job.flags,
    }
    words = [*fit_words(state), *extra]
    words += ["--trainer.num_nodes", str(nodes), "--trainer.devices", str(processes)]
    link_tasks(state, points)
    number = submit_script(render(flags, job.sbatch, words), [], say)
    note_submitted(state, points, number)
    say(f"submitted job {number}, {len(points)} tasks; the same command shows how far they are")
