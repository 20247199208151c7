"""What a command says about a SLURM job: checked before it waits in a queue."""

from __future__ import annotations

import re

from peft_lightning.cli.config_index import ConfigIndex, ConfigValue
from peft_lightning.messages import UserError

NOT_SEEN = ("bash", "interactive")  # job names for which Lightning ignores SLURM
ANY_NUMBER = ("auto", "-1", -1)  # trainer.devices that take what is there


def check_job_options(time: str | None, sbatch: list[str] | None) -> None:
    """Raise UserError for a time limit, or further options of sbatch, that it would refuse."""
    if time is not None and not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", time):
        raise UserError(f"--time {time}: write it as HOURS:MINUTES:SECONDS or DAYS-HOURS")
    if wrong := [option for option in sbatch or [] if not option.startswith("-")]:
        raise UserError(f"--sbatch takes an option, such as --sbatch=--exclusive, got {wrong[0]}")


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
