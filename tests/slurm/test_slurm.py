"""On a real cluster: whatever stops a job, its run goes on as if nothing had been."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from cluster import Job, wait_until

pytestmark = pytest.mark.slurm

TWO_NODES = ("--nodes=2", "--ntasks-per-node=1", "--nodelist=n1,n2")
SLOW = {"STEP_DELAY": 0.25, "VALIDATION_DELAY": 0.05}  # the second rank takes twice as long


@pytest.fixture(scope="session")
def jobs(cluster):
    """Jobs that train at the same time, each disturbed in its way."""
    number = submit_array(cluster)  # which takes as long as the imports
    found = {
        "undisturbed": cluster.train("undisturbed", *TWO_NODES),
        "signalled": cluster.train("signalled", *TWO_NODES, **SLOW),
    }
    os.kill(found["signalled"].wait_for_ranks(2)[1], signal.SIGUSR1)  # as it begins to import

    found["crashed"] = cluster.train("crashed", "--nodelist=n3", STEP_DELAY=0.2)
    for task in "01":
        job = Job(cluster, f"{number}_{task}", cluster.folder / "array" / task)
        found[f"task {task}"] = job
    found["task 1"].wait_for_steps(3)
    found["task 1"].send("USR1")
    found["crashed"].wait_for_steps(8)
    cluster.crash("n3")
    found["walltime"] = cluster.train("walltime", "--time=1", "--signal=USR1@10", STEP_DELAY=0.25)
    return found


def submit_array(cluster):
    """Submit an array as a user would; return its number."""
    command = ["submit", "--config", str(cluster.config), "--array", "0-1", "--job-name", "sweep"]
    command += ["--trainer.default_root_dir", f"{cluster.folder}/array/%a"]
    done = subprocess.run(
        [sys.executable, "-m", "peft_lightning", *command, "--seed_everything", "%a"],
        env={**cluster.environment, "STEP_DELAY": "0.4"},
        cwd=cluster.folder,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("submitted job ")[1].split(";")[0]


def assert_equal(one, other):
    """No step is lost, repeated or different on any rank, and the weights are equal in bits."""
    for rank in (0, 1):
        assert one.trace(rank) == other.trace(rank)
    assert_equal_weights(one, other)


def assert_equal_weights(one, other):
    ours, theirs = one.weights(), other.weights()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_signal_during_the_imports_requeues_at_once(jobs):
    job = jobs["signalled"]
    job.wait_for_start(restarts=1)
    assert "SIGUSR1: stopped before the first step" in job.log()
    assert "is back in the queue" in job.log()


def test_twenty_signals_at_random_moments_lose_repeat_and_change_nothing(jobs):
    job, sent, lives = jobs["signalled"], 1, 1
    draw = random.Random(0)
    while sent < 20:
        job.wait_for_start(restarts=lives)
        job.wait_for_steps(len(job.trace()) + 1)
        time.sleep(draw.uniform(0, 1))
        for i in range(4):  # the later ones reach it while it saves, requeues and ends
            name = draw.choice(["USR1", "TERM"])
            if i == 0 and draw.random() < 0.5:
                job.send(name)  # to every process of the job, data workers too
                sent += 1
            elif ranks := job.ranks():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(ranks[draw.choice(sorted(ranks))], signal.Signals[f"SIG{name}"])
                    sent += 1
            time.sleep(draw.uniform(0, 0.2))
        lives += 1
    job.wait()
    jobs["undisturbed"].wait()
    assert job.restarts == lives
    assert_equal(job, jobs["undisturbed"])
    assert not list(job.root.rglob("hpc_ckpt*"))


def test_two_nodes_train_one_model(jobs):
    jobs["undisturbed"].wait()
    one, other = jobs["undisturbed"].trace(0), jobs["undisturbed"].trace(1)
    assert [row["step"] for row in one] == [row["step"] for row in other]
    assert all(a["ids"] != b["ids"] for a, b in zip(one, other, strict=True) if "ids" in a)


def test_a_task_of_an_array_is_requeued_alone(jobs):
    first, second = jobs["task 0"], jobs["task 1"]
    first.wait()
    second.wait()
    assert first.restarts == 0
    assert second.restarts >= 1  # once more if it was put on the node that then crashes


def test_a_run_that_is_out_of_time_goes_on_in_the_queue(jobs):
    jobs["walltime"].wait()
    assert jobs["walltime"].restarts >= 1
    jobs["task 0"].wait()
    assert_equal(jobs["walltime"], jobs["task 0"])


def test_a_run_on_a_crashed_node_goes_on_from_its_last_checkpoint(cluster, jobs):
    job = jobs["crashed"]
    wait_until(lambda: job.restarts == 1, "the crash is noticed and the job requeued")
    cluster.start("n3")
    job.wait()
    assert job.restarts == 1
    rows = job.trace()  # steps behind the last checkpoint come again, if there were any
    unique = list({str(row): row for row in rows}.values())
    assert unique == jobs["task 0"].trace()
    assert_equal_weights(job, jobs["task 0"])


def test_a_killed_rank_ends_the_job_at_once(cluster):
    job = cluster.train("killed", *TWO_NODES, STEP_DELAY=0.5)
    job.wait_for_steps(3)  # the first rank waits now, and has SLURM's SIGTERM before it misses one
    ranks = job.wait_for_ranks(2)
    os.kill(ranks[1], signal.SIGKILL)
    wait_until(lambda: job.show("JobState") != "RUNNING", "the end of a job without a rank", 20)
    job.wait("FAILED")
    assert "before the first step" not in job.log()


def test_a_rank_that_is_killed_at_the_start_does_not_put_its_job_back(cluster):
    job = cluster.train("killed-early", *TWO_NODES)
    os.kill(job.wait_for_ranks(2)[1], signal.SIGKILL)
    job.wait("FAILED")
    assert job.restarts == 0


def test_a_cancelled_job_saves_and_stays_cancelled(cluster):
    job = cluster.train("cancelled", STEP_DELAY=0.2)
    job.wait_for_steps(5)
    job.cancel()
    job.wait("CANCELLED")
    assert "is saved" in job.log()
    assert job.restarts == 0


def test_a_job_that_must_not_be_requeued_ends_with_75(cluster):
    job = cluster.train("once", "--no-requeue", STEP_DELAY=0.2)
    job.wait_for_steps(5)
    job.send("USR1")
    job.wait("FAILED")
    assert job.show("ExitCode") == "75:0"
    assert "is saved" in job.log()
    assert "submit it with --resume" in job.log()
