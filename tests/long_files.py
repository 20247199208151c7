"""The files whose tests take longest, longest first: each worker begins with those.

With whole files as the units of work, one of minutes that began last would run alone at the end. A
run names the files that should be here. The order is all that counts.
"""

from collections import defaultdict
from collections.abc import Iterable

LONG = 45  # seconds, above which a file is to be in the list

LONG_FILES = [
    "tests/slurm/test_slurm.py",
    "tests/slurm/test_submission.py",
    "tests/slurm/test_sweep_array.py",
    "tests/kernels/test_compiled_layers.py",
    "tests/kernels/test_machine.py",
    "tests/experiments/test_sweep.py",
    "tests/experiments/test_sweep_halving.py",
    "tests/training/test_resume.py",
    "tests/training/cluster/test_preemption.py",
    "tests/training/cluster/test_stop.py",
    "tests/scripts/test_gpu_check.py",
    "tests/commands/test_audit.py",
    "tests/experiments/test_plan.py",
    "tests/kernels/native/test_elementwise.py",
    "tests/training/cluster/test_strategies.py",
    "tests/training/test_lightning_table.py",
    "tests/cli/test_bad_input.py",
    "tests/data/test_datamodule.py",
    "tests/training/test_torch_schedules.py",
    "tests/test_notebooks.py",
    "tests/training/test_tuner.py",
    "tests/training/test_overrides.py",
    "tests/test_killed_writes.py",
    "tests/training/test_progress_bar.py",
    "tests/kernels/test_precision.py",
    "tests/adapters/test_own_adapter.py",
    "tests/test_outputs.py",
    "tests/scripts/test_storm.py",
    "tests/test_full_disks.py",
    "tests/training/test_early_checks.py",
    "tests/test_elsewhere.py",
    "tests/training/test_loggers.py",
    "tests/training/test_kept_checkpoints.py",
    "tests/test_experiments.py",
    "tests/test_examples.py",
    "tests/cli/test_cli.py",
    "tests/export/test_merged_folder.py",
    "tests/test_fuzz.py",
    "tests/training/test_answer_metrics.py",
    "tests/export/test_gguf.py",  # where llama.cpp is installed, as the next
    "tests/export/test_gguf_architectures.py",
]


def start_order(nodeid: str) -> int:
    """Return the place of a test's file among those that are started first; the rest is equal."""
    file = nodeid.partition("::")[0]
    return LONG_FILES.index(file) if file in LONG_FILES else len(LONG_FILES)


def missing(durations: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return the seconds of the files that should be in the list, from those of tests."""
    seconds: dict[str, float] = defaultdict(float)
    for nodeid, duration in durations:
        seconds[nodeid.partition("::")[0]] += duration
    return {f: s for f, s in seconds.items() if s > LONG and f not in LONG_FILES}
