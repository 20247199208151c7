"""``python -m peft_lightning submit``: ``fit`` as a SLURM job, checked before it is queued."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

from peft_lightning.cli.checked_submission import check_fit, check_partition
from peft_lightning.cli.config_index import (
    CLASS_SECTIONS,
    CONFIG_OPTIONS,
    ConfigIndex,
    ConfigValue,
    configs_first,
    default_root,
    is_yaml,
    read_arguments,
    split_options,
)
from peft_lightning.cli.fit_options import check_fit_options
from peft_lightning.cli.job_options import (
    check_job_options,
    checked_name,
    name_of_folder,
    processes_of,
)
from peft_lightning.messages import UserError, shortened
from peft_lightning.training.cluster.job_script import (
    TASK,
    array_tasks,
    partitions,
    render,
    require_sbatch,
    submit_script,
)
from peft_lightning.training.cluster.submission import (
    FOLDER,
    copied_configs,
    copy_name,
    note_contents,
    note_job,
    reserve,
)


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
    check_job_options(time, sbatch, mem, cpus)
    root = _folder(args, array is not None)
    tasks = [str(task) for task in array_tasks(array)] if array else [""]
    runs = {task: _task_words(args, task) for task in tasks}
    folders = []
    sizes = set()
    for task, words in runs.items():
        given = read_arguments(words)
        sizes.add(processes_of(given, nodes, gpus))
        folders.append(_free_folder(given, root, task, resume))
    if len(sizes) > 1:
        raise UserError("the tasks of the array differ in trainer.num_nodes or trainer.devices")
    nodes, processes = sizes.pop()
    flags = {
        "job-name": checked_name(job_name or name_of_folder(Path(root.replace(TASK, "")).name)),
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
    own = ["--trainer.num_nodes", str(nodes), "--trainer.devices", str(processes)]
    if _goes_on_from_last(args, given, resume):
        own = ["--ckpt_path", "last", *own]
    own += ["--trainer.default_root_dir", root]
    script = render(flags, sbatch or [], [*_with_copies(args, root), *own])
    if not dry_run:
        require_sbatch()
        check_partition(partitions(), partition, nodes, processes, cpus)
    distinct = {tuple(words): task for task, words in runs.items()}
    files = {distinct[words]: check_fit(list(words)) for words in distinct}
    if dry_run:
        print(script, end="")
        return
    with ExitStack() as held:
        reserve(folders, held)
        for task, folder in zip(tasks, folders, strict=True):
            for line in copied_configs(_files_of(runs[task]), folder):
                print(line)
            note_contents(folder, files[distinct[tuple(runs[task])]])
        job = submit_script(script, folders, print)
        names = [f"{job}_{task}" if array else job for task in tasks]
        note_job(zip(folders, names, strict=True))
    logs = [f"{f}/slurm-{name}.out" for f, name in zip(folders, names, strict=True)]
    of_all = f"; its log is {logs[0]}" if len(logs) == 1 else f"; its logs are {shortened(logs)}"
    print(f"submitted job {job}{of_all}")


def _task_words(args: list[str], task: str) -> list[str]:
    """Return the options of ``fit`` of a task."""
    return [arg.replace(TASK, task) for arg in args]


def _files_of(args: list[str]) -> list[Path]:
    return [path for _, path in _yaml_words(args).values()]


def _yaml_words(args: list[str]) -> dict[int, tuple[str, Path]]:
    """Return which of the words of ``fit`` are YAML files: what stands before the file, and it."""
    found = {}
    for i, word in enumerate(args):
        option, equals, value = word.partition("=")
        if not (word.startswith("-") and equals):
            option, equals, value = (args[i - 1] if i else "", "", word)
        section = option.removeprefix("--").split(".")[0]
        if option in CONFIG_OPTIONS or (section in CLASS_SECTIONS and is_yaml(value)):
            found[i] = (option + equals if equals else "", Path(value))
    return found


def _with_copies(args: list[str], root: str) -> list[str]:
    """Return the options of ``fit`` with the copies in the run's folder in place of YAML files."""
    words, found = list(args), _yaml_words(args)
    for number, (i, (before, _)) in enumerate(found.items()):
        words[i] = f"{before}{root}/{FOLDER}/{copy_name(number, len(found))}"
    return words


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
    if resume and not taken:
        raise UserError(
            f"--resume: {folder} holds no run to continue: leave --resume out, or give the folder "
            "of the run as --trainer.default_root_dir"
        )
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
