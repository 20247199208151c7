"""What a command says about a SLURM job: checked before it waits in a queue."""

from __future__ import annotations

import re

from peft_lightning.cli.config_index import ConfigIndex, ConfigValue
from peft_lightning.messages import UserError
from peft_lightning.training.cluster.job_script import WARNING

NOT_SEEN = ("bash", "interactive")  # job names for which Lightning ignores SLURM
ANY_NUMBER = ("auto", "-1", -1)  # trainer.devices that take what is there
SHORTEST = WARNING + 120  # seconds: SLURM counts minutes, and looks twice a minute
OF_SUBMIT = {  # options of sbatch -> those of submit that do what they do
    "array": "--array",
    "account": "--account",
    "cpus-per-task": "--cpus",
    "gpus": "--gpus",
    "gpus-per-node": "--gpus",
    "gpus-per-task": "--gpus",
    "gres": "--gpus",
    "job-name": "--job_name",
    "mem": "--mem",
    "nodes": "--nodes",
    "ntasks": "--gpus, or trainer.devices",
    "ntasks-per-node": "--gpus, or trainer.devices",
    "partition": "--partition",
    "qos": "--qos",
    "time": "--time",
}
SET = ("chdir", "open-mode", "output", "error", "signal", "wrap", "test-only", "parsable", "wait")
SHORT = {
    **{"a": "array", "A": "account", "c": "cpus-per-task", "G": "gpus", "J": "job-name"},
    **{"N": "nodes", "n": "ntasks", "p": "partition", "q": "qos", "t": "time", "D": "chdir"},
    **{"o": "output", "e": "error", "W": "wait"},
}


def check_job_options(
    time: str | None, sbatch: list[str] | None, mem: str | None = None, cpus: int | None = None
) -> None:
    """Raise UserError for what sbatch would refuse, and for further options of it that undo ours.

    Args:
        time: Limit of the job.
        sbatch: Further options, as written.
        mem: Memory of a node.
        cpus: Of each process.
    """
    if time is not None:
        if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", time):
            raise UserError(f"--time {time}: write it as HOURS:MINUTES:SECONDS or DAYS-HOURS")
        if (given := seconds_of(time)) < SHORTEST:
            raise UserError(
                f"--time {time} is {given} s, of which the last {WARNING} are for saving: a job "
                f"would be queued again and again; give at least 0:0{SHORTEST // 60}:00"
            )
    if mem is not None and not re.fullmatch(r"[1-9]\d*[KMGT]?B?|0", mem, re.IGNORECASE):
        raise UserError(f"--mem {mem}: write it as a number with a unit, such as 64G; 0 is all")
    if cpus is not None and cpus < 1:
        raise UserError(f"--cpus must be at least 1, got {cpus}")
    for option in sbatch or []:
        if not option.startswith("-"):
            raise UserError(f"--sbatch takes an option, such as --sbatch=--exclusive, got {option}")
        name = _name(option)
        if name in OF_SUBMIT:
            raise UserError(f"--sbatch={option}: give it as submit's own {OF_SUBMIT[name]}")
        if name in SET:
            raise UserError(f"--sbatch={option}: submit sets --{name} itself, leave it out")


def _name(option: str) -> str:
    """Return the long name of an option of sbatch."""
    if not option.startswith("--"):
        return SHORT.get(option[1:2], option)
    return re.split(r"[=\s]", option.removeprefix("--"))[0].replace("_", "-")


def seconds_of(time: str) -> int:
    """Return a time limit in seconds: MINUTES, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, minutes, seconds = 0, *[*parts, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def processes_of(given: ConfigIndex, nodes: int | None, gpus: int | None) -> tuple[int, int]:
    """Return the number of nodes and of processes on each; contradictions are an error."""
    accelerator = given.get("trainer.accelerator")
    kind = None if accelerator is None else accelerator.value
    for name, number in (("--nodes", nodes), ("--gpus", gpus)):
        if number is not None and number < 1:
            raise UserError(f"{name} must be at least 1, got {number}")
    if gpus and kind == "cpu":
        raise UserError(f"--gpus {gpus}, but trainer.accelerator is cpu: leave out one of them")
    if not gpus and kind in ("gpu", "cuda"):
        raise UserError(f"trainer.accelerator is {kind}: give --gpus, their number on a node")
    return (
        _same("--nodes", nodes, "num_nodes", given.get("trainer.num_nodes")),
        _same("--gpus", gpus, "devices", given.get("trainer.devices")),
    )


def _same(option: str, asked: int | None, name: str, given: ConfigValue | None) -> int:
    """Return the number given by ``option`` or the trainer's ``name``, which must not differ."""
    value = None if given is None or given.value in ANY_NUMBER else given.value
    try:
        configured = len(value) if isinstance(value, list) else int(value or 0)
    except ValueError:
        raise UserError(f"trainer.{name} must be a number, got {value!r}") from None
    if given is not None and asked and configured not in (0, asked):
        raise UserError(
            f"{option} {asked}, but {given.where} says trainer.{name} {configured}: there is one "
            "process on each device, so give the same number or leave one out"
        )
    return asked or configured or 1


def checked_name(name: str) -> str:
    """Return the name of a job if SLURM and Lightning take it; UserError if not."""
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII) or name in NOT_SEEN:
        raise UserError(
            f"the job would be called {name!r}: give --job_name, of letters, digits, . _ - and not "
            f"{' or '.join(NOT_SEEN)}, for which Lightning does not see SLURM"
        )
    return name


def name_of_folder(folder: str) -> str:
    """Return a valid name for the job of a run's folder."""
    name = re.sub(r"[^a-zA-Z0-9_.-]+", "-", folder).strip("-.")
    return f"fit-{name}".rstrip("-") if name in ("", *NOT_SEEN) else name
