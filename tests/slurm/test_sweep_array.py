"""On a real cluster: the points of a sweep are tasks of an array, and the same command goes on."""

import json
import subprocess
import sys

import pytest
import torch

from cluster import Job, wait_until

pytestmark = pytest.mark.slurm

POINTS = """
- {model.adapter.r: 2}
- {model.adapter.r: 4}
- {data.train: no.jsonl}
"""


def sweep(cluster, *options):
    """Run the command as a user would, in the cluster's folder."""
    (cluster.folder / "points.yaml").write_text(POINTS)
    command = ["sweep", "--config", str(cluster.config), "--points", "points.yaml"]
    command += ["--dir", "array-sweep", *options]
    return subprocess.run(
        [sys.executable, "-m", "peft_lightning", *command],
        env={**cluster.environment, "STEP_DELAY": "1"},
        cwd=cluster.folder,
        capture_output=True,
        text=True,
        timeout=180,
    )


@pytest.fixture(scope="module")
def swept(cluster):
    """The results of the command at first, while the tasks run, and when all have ended."""
    slurm = ["--slurm", "--trainer.max_epochs", "2"]
    first = sweep(cluster, *slurm)
    assert first.returncode == 0, first.stderr
    root = cluster.folder / "array-sweep"
    kept = json.loads((root / "sweep.json").read_text())["points"]
    tasks = [Job(cluster, point["job"], root / point["name"]) for point in kept]
    tasks[1].wait_for_steps(3)
    tasks[1].send("USR1")
    here = sweep(cluster, *slurm[1:])
    wait_until(lambda: not cluster.call("squeue", "--noheader"), "the end of all tasks")
    last = sweep(cluster, *slurm)
    return first, here, last, tasks


def test_each_point_is_a_task_in_its_own_folder(swept):
    first, _, last, tasks = swept
    assert "submitted job" in first.stderr
    assert "3 of 3 points are not finished, 3 of them in the queue" in first.stdout
    for task in tasks[:2]:
        assert json.loads((task.root / "summary.json").read_text())["status"] == "finished"
        assert "trained" in (task.root / "output.log").read_text()
        row = next(line for line in last.stdout.splitlines() if line.startswith(task.root.name))
        assert row.split()[1] == "finished"


def test_a_task_that_is_preempted_goes_on_as_if_nothing_had_been(swept):
    _, _, _, tasks = swept
    assert "is back in the queue" in (tasks[1].root / "output.log").read_text()
    steps = [row["step"] for row in tasks[1].trace() if "ids" in row]
    assert steps == list(range(1, 25))
    assert all(torch.isfinite(t).all() for t in tasks[1].weights().values())


def test_points_in_the_queue_are_not_trained_here_too(swept):
    _, here, _, _ = swept
    assert here.returncode == 2
    assert "in SLURM's queue, such as job" in here.stderr


def test_the_same_command_submits_again_what_has_failed_alone(swept):
    _, _, last, _ = swept
    assert last.returncode == 0, last.stderr
    assert "submitted job" in last.stderr
    assert ", 1 tasks" in last.stderr
    assert "1 of 3 points are not finished, 1 of them in the queue" in last.stdout
