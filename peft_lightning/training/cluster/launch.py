"""How the processes of a run were started, and how many they are."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from peft_lightning.messages import SharedError

NO_TASKS = 0xFFFFFFF0  # SLURM's numbers of steps that are no srun: of a script, a shell, a prolog
ANY = (None, "auto", "-1", -1)  # trainer.devices that take what is there


@dataclass(frozen=True)
class Launch:
    """Who has started the processes of a run, and how many.

    Args:
        by: srun or torchrun; empty if this process starts the others itself.
        processes: On each node.
        nodes: Their number.
        in_slurm: Whether this is within a SLURM job.
    """

    by: str = ""
    processes: int = 1
    nodes: int = 1
    in_slurm: bool = False


def find_launch(environment: Mapping[str, str]) -> Launch:
    """Return how this process was started.

    Raises:
        SharedError: If the nodes have different numbers of processes.
    """
    in_slurm = "SLURM_JOB_ID" in environment
    if "TORCHELASTIC_RUN_ID" in environment:
        processes = int(environment.get("LOCAL_WORLD_SIZE", 1))
        world = int(environment.get("WORLD_SIZE", processes))
        return Launch("torchrun", processes, max(1, world // processes), in_slurm)
    step = environment.get("SLURM_STEP_ID", "")
    if not step.isdigit() or int(step) >= NO_TASKS or "SLURM_PROCID" not in environment:
        return Launch(in_slurm=in_slurm)
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or 1)
    spread = environment.get("SLURM_STEP_TASKS_PER_NODE", str(tasks))
    counts = re.findall(r"(\d+)(?:\(x(\d+)\))?", spread)
    nodes = sum(int(times or 1) for _, times in counts)
    if len({count for count, _ in counts}) > 1:
        raise SharedError(
            f"srun has started {tasks} tasks on {nodes} nodes, {spread} of them: give each node "
            "as many, srun --ntasks-per-node"
        )
    return Launch("srun", max(1, tasks // nodes), nodes, True)


def status_of_stop(number: int, is_first: bool, environment: Mapping[str, str]) -> int:
    """Return the exit status of one of several processes that a signal has stopped cleanly.

    Args:
        number: Of the signal.
        is_first: Whether the process is the first of its node. Lightning's launcher kills that one
            when another that it has started fails.
        environment: Variables of the process. torchrun takes any status but 0 for a failure: it
            starts all processes again if it may, and else prints a report of its own.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        starts, most = (
            int(environment.get(f"TORCHELASTIC_{name}") or 0)
            for name in ("RESTART_COUNT", "MAX_RESTARTS")
        )
        return 128 + number if starts < most else 0
    return 128 + number if is_first else 0


class SlurmTasks(SLURMEnvironment):
    """The tasks that srun has started, whatever the job is called and was allocated."""

    def __init__(self) -> None:
        super().__init__(auto_requeue=False)

    @staticmethod
    def _validate_srun_used() -> None:
        """Know that it is used."""

    @staticmethod
    def _validate_srun_variables() -> None:
        """Know that the tasks are counted."""

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Know that they are those of the step."""

    @property
    def main_port(self) -> int:
        """The port of the first task: each step of a job has its own."""
        if "MASTER_PORT" not in os.environ:
            number = int(os.environ["SLURM_JOB_ID"]) + 97 * int(os.environ["SLURM_STEP_ID"])
            os.environ["MASTER_PORT"] = str(15000 + number % 10000)
        return int(os.environ["MASTER_PORT"])


def launched_options(options: Mapping[str, Any], launch: Launch) -> dict[str, Any]:
    """Return what a trainer's options are with the processes that there are.

    Args:
        options: ``devices``, ``num_nodes`` and ``plugins``, as given.
        launch: Of this process.

    Returns:
        Those of the options that differ.

    Raises:
        SharedError: If the options ask for other numbers of processes than there are.
    """
    devices, nodes = options.get("devices"), options.get("num_nodes") or 1
    plugins = options.get("plugins")
    given = list(plugins) if isinstance(plugins, (list, tuple)) else [plugins] if plugins else []
    if any(isinstance(plugin, ClusterEnvironment) for plugin in given):
        return {}
    if not launch.by:
        if not launch.in_slurm:
            return {}
        if nodes > 1 and not {"LOCAL_RANK", "NODE_RANK"} & os.environ.keys():
            raise SharedError(
                f"trainer.num_nodes is {nodes}, but this is one process that no srun has started: "
                f"begin the command with srun --nodes={nodes} --ntasks-per-node={_count(devices)}"
            )
        return {"plugins": [*given, LightningEnvironment()]}
    asked = launch.processes if devices in ANY else _count(devices)
    if asked != launch.processes or nodes not in (1, launch.nodes):
        wanted = max(nodes, launch.nodes if nodes == 1 else 1)
        raise SharedError(
            f"{launch.by} has started {launch.processes} processes on each of {launch.nodes} "
            f"nodes, but trainer.devices is {asked} and trainer.num_nodes {nodes}: "
            f"{_start(launch.by, asked, wanted)}, or leave trainer.devices and "
            "trainer.num_nodes out"
        )
    found = {"devices": launch.processes if devices in ANY else devices, "num_nodes": launch.nodes}
    return found | ({"plugins": [*given, SlurmTasks()]} if launch.by == "srun" else {})


def _start(by: str, processes: int, nodes: int) -> str:
    names = ("--nodes", "--ntasks-per-node") if by == "srun" else ("--nnodes", "--nproc-per-node")
    return f"begin the command with {by} {names[0]}={nodes} {names[1]}={processes}"


def _count(devices: Any) -> int:
    """Return how many devices an option names; 1 for those that are there."""
    if isinstance(devices, (list, tuple)):
        return len(devices)
    text = str(devices)
    if "," in text:
        return len([part for part in text.split(",") if part.strip()])
    return int(text) if text.isdigit() else 1
