"""``python -m peft_lightning submit``: ``fit`` as a SLURM job, checked before it is queued."""

from __future__ import annotations

import re
from pathlib import Path

from peft_lightning.cli.config_index import (
    CONFIG_OPTIONS,
    ConfigIndex,
    ConfigValue,
    configs_first,
    default_root,
    read_arguments,
    split_options,
)
from peft_lightning.cli.fit_options import check_fit_options
from peft_lightning.cli.job_options import check_job_options, checked_name, processes_of
from peft_lightning.messages import UserError
from peft_lightning.training.cluster.job_script import TASK, array_tasks, render, submit_script


def submit(
    *fit: str,
    nodes: int | None = None,
    gpus: int | None = None,
    cpus: int | None = None,
    mem: str | None = None,
    time: str | None = None,
    array: str | None = None,
    partition: str | None = None,
    account: str | None = None,
    qos: str | None = None,
    job_name: str | None = None,
    sbatch: list[str] | None = None,
    resume: bool = False,
    dry_run: bool = False,
) -> None:
    """Submit ``fit`` as a SLURM job that continues by itself after preemption or a crash.

    Args:
        fit: Options of fit, such as --config FILE; %a in them is the number of the array's task.
        nodes: Number of nodes; without, trainer.num_nodes, or 1.
        gpus: GPUs of each node, with one process each; without GPUs, trainer.devices processes.
        cpus: CPUs of each process.
        mem: Memory of each node, such as 64G.
        time: Time limit, such as 8:00:00; 120 s before it, the run saves and is queued again.
        array: Tasks, such as 0-3 or 1,5%2, each with its own folder.
        partition: Partition to queue in.
        account: Account to charge.
        qos: Quality of service.
        job_name: Name of the job; without, that of the run's folder.
        sbatch: Any other option of sbatch, such as --sbatch=--exclusive.
        resume: Continue the run that is already in the folder.
        dry_run: Print the script instead of submitting it.
    """
    args = configs_first(list(fit))
    check_fit_options("submit", args, submit.__kwdefaults__ or {})
    check_job_options(time, sbatch)
    root = _folder(args, array is not None)
    folders = []
    sizes = set()
    for task in array_tasks(array) if array else [""]:
        given = read_arguments([arg.replace(TASK, str(task)) for arg in args])
        sizes.add(processes_of(given, nodes, gpus))
        folders.append(_free_folder(given, root, str(task), resume))
    if len(sizes) > 1:
        raise UserError("the tasks of the array differ in trainer.num_nodes or trainer.devices")
    nodes, processes = sizes.pop()
    flags = {
        "job-name": checked_name(job_name or Path(root.replace(TASK, "")).name.rstrip("-_.")),
        "chdir": Path.cwd(),
        "output": f"{root}/slurm-{'%A_%a' if array else '%j'}.out",
        "array": array,
        "partition": partition,
        "account": account,
        "qos": qos,
        "time": time,
        "nodes": nodes,
        "ntasks-per-node": processes,
        "gpus-per-node": gpus,
        "cpus-per-task": cpus,
        "mem": mem,
    }
    if _goes_on_from_last(args, given, resume):
        args += ["--ckpt_path", "last"]
    args += ["--trainer.num_nodes", str(nodes), "--trainer.devices", str(processes)]
    script = render(flags, sbatch or [], [*args, "--trainer.default_root_dir", root])
    if dry_run:
        print(script, end="")
        return
    job = submit_script(script, folders)
    print(f"submitted job {job}; its log is {flags['output']}")


def _folder(args: list[str], is_array: bool) -> str:
    """Return the run's folder as the script has it: with ``%a`` for an array."""
    common = [
        f"{option}={value}"
        for option, value in split_options(args)
        if not (option in CONFIG_OPTIONS and TASK in str(value))
    ]
    given = read_arguments(common).get("trainer.default_root_dir")
    configs = [value for option, value in split_options(args) if option in CONFIG_OPTIONS]
    root = default_root(configs) if given is None or not given.value else _expanded(given)
    if is_array and TASK not in root:
        root = f"{root}/{TASK}"
    if re.search(r"[\s$`\"'\\]", root) or "%" in root.replace(TASK, "" if is_array else TASK):
        raise UserError(
            f"trainer.default_root_dir {root!r}: write the folder without spaces and variables, so "
            "that it is the same after a requeue; only the tasks of an array have %a, their number"
        )
    return root


def _expanded(folder: ConfigValue) -> str:
    return str(Path(str(folder.value)).expanduser())


def _free_folder(given: ConfigIndex, root: str, task: str, resume: bool) -> Path:
    """Return the folder of a task; it must not hold a run unless that is to be resumed."""
    folder = root.replace(TASK, task)
    own = given.get("trainer.default_root_dir")
    if own is not None and own.value and _expanded(own) not in (folder, str(Path(folder).parent)):
        raise UserError(
            f"{own.where}: give the folder of an array as --trainer.default_root_dir FOLDER/%a"
        )
    taken = [name for name in ("run.json", "checkpoints") if (Path(folder) / name).exists()]
    if taken and not resume:
        raise UserError(
            f"{folder} holds a run already: give --resume to continue it, or another "
            "--trainer.default_root_dir"
        )
    return Path(folder)


def _goes_on_from_last(args: list[str], given: ConfigIndex, resume: bool) -> bool:
    """Whether to add ``--ckpt_path last``: unless an option or the config of a new run has one.

    A job that is queued again continues from its ``last`` checkpoint in any case.
    """
    in_config = any(v.value for v in given.all("ckpt_path"))
    on_command_line = "--ckpt_path" in [option for option, _ in split_options(args)]
    return not on_command_line and (resume or not in_config)
