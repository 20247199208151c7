"""On a real cluster: a job trains what was submitted, and puts nothing but itself in the queue."""

import json
import os
import signal
import sys

import pytest
import yaml

from cluster import Job, wait_until

pytestmark = pytest.mark.slurm


def job_of(cluster, name):
    job = json.loads((cluster.folder / name / "submission/job.json").read_text())["job"]
    return Job(cluster, job, cluster.folder / name)


def test_a_job_that_starts_again_trains_by_the_config_that_was_submitted(cluster):
    done = cluster.submit("copied", "--trainer.max_epochs", "2", STEP_DELAY="0.5")
    assert done.returncode == 0, done.stderr
    job = job_of(cluster, "copied")
    assert f"its log is {job.root}/slurm-{job.number}.out" in done.stdout
    text = cluster.config.read_text()
    job.wait_for_steps(2)
    cluster.config.write_text(text.replace("1.0e-2", "1.0e-5"))
    job.send("USR1")
    try:
        job.wait_for_start(restarts=1)
        job.wait()
    finally:
        cluster.config.write_text(text)
    config = yaml.safe_load((job.root / "config.yaml").read_text())
    assert config["model"]["learning_rate"] == 1e-2
    assert [row["step"] for row in job.trace() if "ids" in row] == list(range(1, 25))


NESTED = """
cd {folder}
{python} -m peft_lightning submit --config {config} --trainer.default_root_dir {folder}/inner
while [ ! -e {folder}/over ]; do sleep 0.2; done
echo the outer one goes on
"""


def test_a_job_that_was_submitted_in_an_array_task_puts_itself_back_and_not_the_task(cluster):
    names = {"python": sys.executable, "config": cluster.config, "folder": cluster.folder}
    text = NESTED.format(**names)
    outer = cluster.script("outer", text, "--array=5-5", "--export=ALL,STEP_DELAY=0.3")
    facts = cluster.folder / "inner/submission/job.json"
    wait_until(facts.exists, "the inner job's submission")
    inner = job_of(cluster, "inner")
    inner.wait_for_steps(2)
    inner.send("USR1")
    inner.wait_for_start(restarts=1)
    inner.cancel()
    (cluster.folder / "over").touch()
    outer.wait()
    assert outer.restarts == 0
    assert outer.log().count("the outer one goes on") == 1
    assert f"job {inner.number} is back in the queue" in inner.log()


WITHIN = """
{python} -m peft_lightning fit --config {config} --trainer.default_root_dir {folder}/within &
echo $! > {folder}/pid; wait $!; echo status $?
"""


def test_a_run_within_a_larger_job_saves_and_leaves_the_job_alone(cluster):
    names = {"python": sys.executable, "config": cluster.config, "folder": cluster.folder}
    job = cluster.script("within", WITHIN.format(**names), "--export=ALL,STEP_DELAY=0.3")
    job.wait_for_steps(2)
    os.kill(int((cluster.folder / "pid").read_text()), signal.SIGTERM)
    job.wait()
    assert job.restarts == 0
    assert "status 143" in job.log()
    assert "is saved, --ckpt_path last continues from it" in job.log()
