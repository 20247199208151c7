"""What this process may use of the machine: processor cores, threads and memory.

Containers and job schedulers limit a process without changing what the operating system reports
of the machine: their limits are read here from the control groups (cgroup v1 and v2).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from peft_lightning.messages import UserError

MOST_PROCESSES_PER_CORE = 4  # beyond that, a number of processes is a mistake

_MOUNT, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_VARIABLE = "OMP_NUM_THREADS"  # read by torch, OpenMP and MKL when they are loaded

# How often an OpenMP thread that waits for the others looks before it sleeps. OpenMP's default,
# 300,000, is 3 % faster on an idle machine, but two thirds of the speed are lost beside one busy
# process, and half with 2,000: scripts/benchmarks/busy.py
_SPIN_COUNT = ("GOMP_SPINCOUNT", "2000")
_WAITING = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}  # how the user may set it


@dataclass(frozen=True)
class Cores:
    """The facts that decide the number of threads.

    Args:
        host: Logical cores of the machine.
        allowed: Those that this process may run on (its affinity).
        quota: Cores' worth of time that the control group gets; None without a limit.
        per_task: ``SLURM_CPUS_PER_TASK``: the cores of each process of a SLURM job.
        given: ``OMP_NUM_THREADS`` as the user set it.
    """

    host: int
    allowed: int
    quota: float | None = None
    per_task: int | None = None
    given: str | None = None


@dataclass(frozen=True)
class Threads:
    """A number of threads, and why.

    Args:
        count: Of each process; None to leave it to torch, which takes the cores of the affinity.
        reason: In words.
    """

    count: int | None
    reason: str


def thread_count(cores: Cores, processes: int = 1) -> Threads:
    """Return how many threads each of several processes on this machine should compute with.

    More threads than there is processor time for wait for each other at the end of every product.
    A quota is rounded down: a thread that is stopped for the rest of a period stops the others.

    Args:
        cores: What this process may use.
        processes: That share it; ``per_task`` is each one's own already.
    """
    if cores.given is not None:
        return Threads(None, _VARIABLE)
    shared: dict[str, float] = {f"the {cores.allowed} cores": cores.allowed}
    if cores.allowed < cores.host:
        shared = {f"the affinity: {cores.allowed} of {cores.host} cores": cores.allowed}
    if cores.quota is not None and cores.quota < cores.allowed:
        shared[f"the CPU quota of {cores.quota:g} of {cores.host} cores"] = cores.quota
    reason, limit = min(shared.items(), key=lambda item: item[1])
    count = max(1, int(limit / processes))
    if processes > 1:
        reason = f"{reason}, shared by {processes} processes"
    if cores.per_task is not None and (processes > 1 or cores.per_task < limit):
        count, reason = max(1, min(cores.per_task, int(limit))), "SLURM_CPUS_PER_TASK"
    return Threads(None if count == cores.allowed else count, reason)


_set: Threads | None = None  # by limit_threads
_own: str | None = None  # the variable's value, if it is ours


def limit_threads(processes: int = 1) -> Threads:
    """Let torch compute with as many threads as ``thread_count`` says, in child processes too.

    Called before torch is loaded it takes effect at once; afterwards torch is told. Threads that
    wait for each other give way to other processes sooner, unless the user has set how they wait.

    Args:
        processes: That share this machine's cores.
    """
    global _set, _own
    if not _WAITING & os.environ.keys():
        os.environ.setdefault(*_SPIN_COUNT)
    cores = find_cores()
    if cores.given is not None and cores.given == _own:  # set here before, not by the user
        cores = replace(cores, given=None)
    _set = thread_count(cores, processes)
    if cores.given is None and (_set.count or _own):
        count = _set.count or cores.allowed
        os.environ[_VARIABLE] = _own = str(count)
        torch = sys.modules.get("torch")
        if torch is not None and torch.get_num_threads() != count:
            torch.set_num_threads(count)
    return _set


def threads_reason() -> str:
    """Return why this process computes with its number of threads."""
    return (_set or thread_count(find_cores())).reason


def check_processes(processes: int, cores: Cores) -> str:
    """Return what to know of ``processes`` that compute on these cores; "" if they fit.

    Raises:
        UserError: If they are so many that each would wait for the others most of the time.
    """
    count = max(1, int(min(cores.allowed, cores.quota or cores.allowed)))
    if processes <= count:
        return ""
    line = f"{processes} processes on {count} core{'s' * (count > 1)}"
    if processes > MOST_PROCESSES_PER_CORE * count:
        raise UserError(f"trainer.devices: {line}: --trainer.devices {count} uses all of them")
    return f"{line}: they wait for each other; --trainer.devices {count} is faster"


def find_cores(environment: Mapping[str, str] = os.environ) -> Cores:
    """Return what this process may use of the processor."""
    host = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else host
    per_task = environment.get("SLURM_CPUS_PER_TASK", "")
    task = int(per_task) if per_task.isdecimal() and int(per_task) > 0 else None
    return Cores(host, allowed, cpu_quota(), task, environment.get(_VARIABLE) or None)


def cpu_quota(mount: Path = _MOUNT, own_groups: Path = _OWN_GROUPS) -> float | None:
    """Return the cores' worth of time that the control groups allow; None without a limit."""
    quotas = []
    for folder in _groups("cpu", mount, own_groups):
        with suppress(OSError, ValueError):
            if (folder / "cpu.max").is_file():  # version 2
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = (
                    (folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
                )
            if quota != "max" and int(quota) > 0 and int(period) > 0:
                quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def available_memory(
    mount: Path = _MOUNT,
    own_groups: Path = _OWN_GROUPS,
    meminfo: Path = Path("/proc/meminfo"),
) -> int | None:
    """Return the bytes that this process may still take, None if the system does not say.

    The least of what the machine has left and what each control group has. Memory that holds
    files which can be dropped counts as free.
    """
    left = []
    with suppress(OSError, ValueError):
        values = dict(line.split(":") for line in meminfo.read_text().splitlines())
        left.append(int(values["MemAvailable"].split()[0]) * 1024)
    for folder in _groups("memory", mount, own_groups):
        version_2 = (folder / "memory.max").is_file()
        names = ("memory.max", "memory.current", "inactive_file")
        if not version_2:
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        with suppress(OSError, ValueError):
            limit, used = ((folder / name).read_text().strip() for name in names[:2])
            lines = (folder / "memory.stat").read_text().splitlines()
            files = dict(line.split() for line in lines).get(names[2], "0")
            if limit != "max":
                left.append(max(0, int(limit) - int(used) + int(files)))
    return min(left, default=None)


def _groups(controller: str, mount: Path, own_groups: Path) -> Iterator[Path]:
    """Yield the folders of the control groups of this process, each within the next.

    A container often sees its own group as the root of the mount: what is not there is left out.
    """
    try:
        lines = [line.split(":", 2) for line in own_groups.read_text().splitlines()]
    except OSError:
        return
    for number, controllers, path in lines:
        if number == "0" and not controllers:  # version 2, alone or beside version 1
            roots = [mount, mount / "unified"]
        elif controller in controllers.split(","):
            roots = [mount / controllers, mount / controller]
        else:
            continue
        inner = Path(path.lstrip("/"))
        for root in roots:
            for folder in dict.fromkeys([root / inner, *(root / p for p in inner.parents), root]):
                if folder.is_dir():
                    yield folder
