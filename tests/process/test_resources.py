"""What a process may use of the machine: cores, threads, memory, by container and scheduler."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from peft_lightning.process.resources import (
    Cores,
    available_memory,
    check_processes,
    cpu_quota,
    find_cores,
    thread_count,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("cores", "processes", "count", "reason"),
    [
        (Cores(2, 2), 1, None, "the 2 cores"),
        (Cores(64, 8), 1, None, "the affinity: 8 of 64 cores"),
        (Cores(64, 64, quota=4.0), 1, 4, "the CPU quota of 4 of 64 cores"),
        (Cores(64, 64, quota=1.5), 1, 1, "the CPU quota of 1.5 of 64 cores"),
        (Cores(64, 64, quota=0.5), 1, 1, "the CPU quota of 0.5 of 64 cores"),
        (Cores(64, 4, quota=8.0), 1, None, "the affinity: 4 of 64 cores"),
        (Cores(64, 64, per_task=6), 1, 6, "SLURM_CPUS_PER_TASK"),
        (Cores(64, 64, per_task=6, quota=2.0), 1, 2, "the CPU quota of 2 of 64 cores"),
        (Cores(64, 64), 4, 16, "the 64 cores, shared by 4 processes"),
        (Cores(64, 64, quota=8.0), 4, 2, "the CPU quota of 8 of 64 cores, shared by 4 processes"),
        (Cores(2, 2), 4, 1, "the 2 cores, shared by 4 processes"),
        (Cores(64, 64, per_task=6), 4, 6, "SLURM_CPUS_PER_TASK"),  # of each of the four
        (Cores(64, 64, quota=4.0, per_task=6, given="9"), 4, None, "OMP_NUM_THREADS"),
    ],
)
def test_threads_follow_the_tightest_limit_and_what_the_user_set(cores, processes, count, reason):
    found = thread_count(cores, processes)
    assert (found.count, found.reason) == (count, reason)


def test_processes_beyond_the_cores_are_said_and_many_more_refused():
    assert check_processes(2, Cores(2, 2)) == ""
    assert check_processes(3, Cores(2, 2)).startswith("3 processes on 2 cores: ")
    assert check_processes(2, Cores(8, 8, quota=1.0)).startswith("2 processes on 1 core: ")
    with pytest.raises(ValueError, match=r"99 processes on 2 cores: --trainer\.devices 2 uses all"):
        check_processes(99, Cores(2, 2))


def groups(root, lines, files):
    """Write what a kernel shows of control groups; return the options that read it."""
    own = root / "own"
    own.write_text("".join(f"{line}\n" for line in lines))
    for name, text in files.items():
        (root / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "cgroup" / name).write_text(text)
    return {"mount": root / "cgroup", "own_groups": own}


@pytest.mark.parametrize(
    ("lines", "files", "quota"),
    [
        (["0::/"], {"cpu.max": "250000 100000\n"}, 2.5),
        (["0::/"], {"cpu.max": "max 100000\n"}, None),
        (["0::/pod/box"], {"pod/box/cpu.max": "max 100000", "pod/cpu.max": "50000 50000"}, 1.0),
        (["0::/host/path"], {"cpu.max": "300000 100000"}, 3.0),  # a container sees its own as /
        (
            ["4:cpu,cpuacct:/box", "0::/"],
            {
                "cpu,cpuacct/box/cpu.cfs_quota_us": "200000",
                "cpu,cpuacct/box/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            2.0,
        ),
        (["3:cpuset:/"], {"cpu.max": "100000 100000"}, None),
    ],
)
def test_the_quota_of_both_versions_of_control_groups_is_read(lines, files, quota, tmp_path):
    assert cpu_quota(**groups(tmp_path, lines, files)) == quota
    assert cpu_quota(tmp_path, tmp_path / "none") is None


@pytest.mark.parametrize(
    ("lines", "files", "left"),
    [
        (
            ["0::/box"],
            {
                "box/memory.max": "1000000\n",
                "box/memory.current": "700000\n",
                "box/memory.stat": "anon 1\ninactive_file 200000\n",
            },
            500_000,  # 1,000,000 - 700,000 + the files in memory
        ),
        (
            ["4:memory:/box"],
            {
                "memory/box/memory.limit_in_bytes": "1000000\n",
                "memory/box/memory.usage_in_bytes": "900000\n",
                "memory/box/memory.stat": "total_inactive_file 50000\n",
            },
            150_000,
        ),
        (
            ["0::/"],
            {"memory.max": "max", "memory.current": "5", "memory.stat": "inactive_file 1"},
            2_048_000,
        ),
    ],
)
def test_memory_that_is_left_is_the_least_of_machine_and_control_groups(
    lines, files, left, tmp_path
):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  4000 kB\nMemAvailable:   2000 kB\n")
    assert available_memory(**groups(tmp_path, lines, files), meminfo=meminfo) == left


def test_this_process_may_use_at_least_one_core_and_some_memory():
    assert 1 <= find_cores().allowed <= find_cores().host
    assert available_memory() is None or available_memory() > 0
    assert find_cores({"SLURM_CPUS_PER_TASK": "3", "OMP_NUM_THREADS": ""}).per_task == 3
    assert find_cores({"SLURM_CPUS_PER_TASK": "junk"}).per_task is None


def threads_of(code, **environment):
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport torch; print(torch.get_num_threads())"],
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


LIMIT = "from peft_lightning.process.resources import limit_threads, threads_reason\n"


def test_torch_computes_with_the_threads_of_the_limit_and_child_processes_too():
    task = {"SLURM_CPUS_PER_TASK": "1"}
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one core is one thread")
    assert threads_of(f"{LIMIT}limit_threads()", **task) == ["1"]
    assert threads_of(f"import torch\n{LIMIT}limit_threads()", **task) == ["1"]
    assert threads_of("", **task) != ["1"]
    assert threads_of(f"{LIMIT}limit_threads()", **task, OMP_NUM_THREADS="2") == ["2"]
    code = (
        f"{LIMIT}import os\nlimit_threads({os.cpu_count()})\nprint(os.environ['OMP_NUM_THREADS'])"
    )
    assert threads_of(code) == ["1", "1"]


@pytest.mark.parametrize(
    ("given", "count"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
)
def test_waiting_threads_of_openmp_sleep_soon_unless_the_user_says_how_they_wait(given, count):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "OMP_WAIT"))}
    done = subprocess.run(
        [sys.executable, "-c", f"{LIMIT}limit_threads()\nimport torch"],
        env=environment | given | {"OMP_DISPLAY_ENV": "verbose", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("torch is not built with GNU's OpenMP")
    assert f"GOMP_SPINCOUNT = '{count}'" in done.stderr


def test_a_limit_that_is_gone_is_taken_back():
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one core is one thread")
    allowed = str(find_cores().allowed)
    assert threads_of(f"{LIMIT}limit_threads(64)\nlimit_threads()") == [allowed]
