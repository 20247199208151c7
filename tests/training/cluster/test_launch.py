"""The processes of a run are those that its launcher has started; other numbers are one line."""

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment

from peft_lightning.training.cluster.launch import (
    Launch,
    SlurmTasks,
    find_launch,
    launched_options,
    status_of_stop,
)

JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
STEP = {**JOB, "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"}


@pytest.mark.parametrize(
    ("environment", "launch"),
    [
        ({}, Launch()),
        (JOB, Launch(in_slurm=True)),  # salloc
        ({**JOB, "SLURM_PROCID": "0", "SLURM_NODEID": "0"}, Launch(in_slurm=True)),  # a script
        ({**JOB, "SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967290"}, Launch(in_slurm=True)),
        ({**STEP, "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}, Launch("srun", 2, 2, True)),
        ({**STEP, "SLURM_STEP_TASKS_PER_NODE": "4"}, Launch("srun", 4, 1, True)),
        (
            {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "6"},
            Launch("torchrun", 2, 3),
        ),
    ],
)
def test_a_launcher_is_known_by_what_it_leaves_in_the_environment(environment, launch):
    assert find_launch(environment) == launch


def test_nodes_with_other_numbers_of_tasks_are_refused():
    with pytest.raises(ValueError, match=r"4 tasks on 3 nodes, 2,1\(x2\) of them"):
        find_launch({**STEP, "SLURM_STEP_TASKS_PER_NODE": "2,1(x2)"})


@pytest.mark.parametrize("devices", [None, "auto", 2, "2", [0, 1]])
def test_the_tasks_are_taken_whether_or_not_they_are_given_too(devices):
    found = launched_options({"devices": devices}, Launch("srun", 2, 2, True))
    assert found["num_nodes"] == 2
    assert found["devices"] in (2, "2", [0, 1])
    assert isinstance(found["plugins"][0], SlurmTasks)
    torchrun = launched_options({"devices": devices, "num_nodes": 2}, Launch("torchrun", 2, 2))
    assert "plugins" not in torchrun


def test_without_srun_a_run_in_a_job_is_an_ordinary_one():
    [plugin] = launched_options({"devices": 2}, Launch(in_slurm=True))["plugins"]
    assert isinstance(plugin, LightningEnvironment)
    assert launched_options({"devices": 2}, Launch()) == {}


@pytest.mark.parametrize(
    ("options", "launch", "message"),
    [
        ({"devices": 2}, Launch("srun", 1, 1, True), "srun has started 1 .* of 1 .* is 2 .* 1: "
         "begin the command with srun --nodes=1 --ntasks-per-node=2, or leave"),
        ({"devices": 1}, Launch("torchrun", 2, 1), "torchrun has started 2 .* of 1 .*"
         "torchrun --nnodes=1 --nproc-per-node=1"),
        ({"devices": 2, "num_nodes": 3}, Launch("srun", 2, 2, True), "on each of 2 nodes, .*"
         "trainer.num_nodes 3"),
        ({"devices": 2, "num_nodes": 2}, Launch(in_slurm=True), "no srun has started: begin the "
         "command with srun --nodes=2 --ntasks-per-node=2"),
    ],
)  # fmt: skip
def test_other_numbers_are_one_line_with_both_and_the_right_command(options, launch, message):
    with pytest.raises(ValueError, match=message):
        launched_options(options, launch)


def test_torchrun_starts_a_stopped_run_again_if_it_may_and_else_takes_it_for_no_failure():
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "1"}
    for first in (True, False):
        assert status_of_stop(15, first, {**torchrun, "TORCHELASTIC_MAX_RESTARTS": "2"}) == 143
        assert status_of_stop(15, first, {**torchrun, "TORCHELASTIC_MAX_RESTARTS": "1"}) == 0
    assert (status_of_stop(15, True, {}), status_of_stop(15, False, {})) == (143, 0)
