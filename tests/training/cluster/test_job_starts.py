"""A job that gets nowhere, or fails whenever it starts, is not started again and again."""

import json

import pytest

from peft_lightning.process import slurm
from peft_lightning.training.cluster.job_starts import FACTS_FILE, JobStarts, begin_start


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Begin a start of job 17 whose last checkpoint is of a step."""
    last = tmp_path / "checkpoints/last.ckpt"
    last.mkdir(parents=True)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setattr(slurm, "refusal", slurm.refusal)
    monkeypatch.setattr(slurm, "note_failure", slurm.note_failure)

    def begin(restart, step, job="17"):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        monkeypatch.setenv("PEFT_LIGHTNING_JOB", job)
        (last / FACTS_FILE).write_text(json.dumps({"step": step}))
        return begin_start(tmp_path)

    return begin


def test_a_start_that_fails_is_repeated_once(start):
    for restart, step in ((0, 0), (1, 7)):
        start(restart, step)
        slurm.note_failure("no such file")
    with pytest.raises(RuntimeError, match="failed in two starts and is not tried again: no such"):
        start(2, 9)


def test_so_is_one_that_is_killed_before_it_saves(start):
    start(0, 5)
    start(1, 5)
    with pytest.raises(RuntimeError, match="killed, or its node has crashed"):
        start(2, 5)


def test_starts_that_save_go_on_for_ever_whatever_ends_them(start):
    for restart in range(6):
        start(restart, restart)
        if restart % 2:
            assert slurm.refusal() is None


def test_a_job_that_saves_nothing_in_two_starts_does_not_go_back_into_the_queue(start):
    start(0, 5)
    assert slurm.refusal() is None
    start(1, 5)
    assert "two starts have made no new checkpoint, the last is of step 5" in str(slurm.refusal())


def test_all_ranks_of_a_start_see_the_same_starts(start, tmp_path):
    start(0, 5)
    first = start(1, 6)
    other = JobStarts(tmp_path, "17")
    other.begin()
    assert other.starts == first.starts


def test_what_is_not_the_job_that_was_submitted_notes_nothing(start, tmp_path):
    assert start(0, 5, job="16") is None
    assert not (tmp_path / "submission").exists()
