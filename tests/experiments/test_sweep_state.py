"""What a sweep remembers, compares and shows, without a run."""

import json

import pytest

from peft_lightning.cli.fit_options import given_options
from peft_lightning.experiments.sweep import state as state_module
from peft_lightning.experiments.sweep.progress import time_left
from peft_lightning.experiments.sweep.slurm import array_of, link_tasks, to_submit
from peft_lightning.experiments.sweep.state import PointState, SweepState
from peft_lightning.experiments.sweep.table import ending, sweep_table
from peft_lightning.messages import UserError

POINTS = [{"model.adapter.r": r, "seed_everything": s} for r in (2, 4) for s in (0, 1)]


def finish(state, name, loss=1.0, status="finished"):
    folder = state.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"status": status, "best_val_loss": loss, "steps": 10, "train_seconds": 3.0}
    (folder / "summary.json").write_text(json.dumps(facts))


def opened(folder, points=POINTS, base=None):
    return SweepState.open(folder, base or {"model.learning_rate": 0.1}, points)


def test_a_sweep_reads_what_became_of_its_points_from_their_runs(tmp_path):
    state = opened(tmp_path / "s")
    assert [p.name for p in state.asked_points()] == [
        *("r=2-seed=0", "r=2-seed=1", "r=4-seed=0", "r=4-seed=1")
    ]
    finish(state, "r=2-seed=0", 0.5)
    finish(state, "r=2-seed=1", 0.7, "stopped: StopSignal")
    state.points["r=4-seed=0"].status = "failed"
    state.save()
    state = opened(tmp_path / "s")
    statuses = [point.status for point in state.asked_points()]
    assert statuses == ["finished", "stopped", "failed", "pending"]
    assert (state.points["r=2-seed=0"].val_loss, state.points["r=2-seed=0"].step) == (0.5, 10)


def test_a_point_keeps_its_name_when_others_come_or_go(tmp_path):
    state = opened(tmp_path / "s", [{"a.r": 1}, {"a.r": 2}])
    state.save()
    state = opened(tmp_path / "s", [{"a.r": 2}, {"a.r": 2, "b.r": 3}])
    assert state.asked == ["r=2", "a.r=2-b.r=3"]
    assert [point.name for point in state.other_points()] == ["r=1"]
    assert "1 more points of earlier sweeps are in" in sweep_table(state)


def test_the_points_that_differ_in_their_seed_alone_are_a_group(tmp_path):
    groups = [point.group for point in opened(tmp_path / "s").asked_points()]
    assert groups[0] == groups[1] != groups[2] == groups[3]


def test_a_config_is_the_same_whether_it_is_in_a_file_or_on_the_command_line(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "model: {adapter: {class_path: LoRA, init_args: {r: 8}}, learning_rate: 1e-4}  # comment\n"
        "data: {train: [a.jsonl, b.jsonl], val: null}\n"
    )
    options = ["--model.adapter", "LoRA", "--model.adapter.r=8", "--model.learning_rate", "0.0001"]
    options += ["--data.train", "[a.jsonl, b.jsonl]", "--data.val=null"]
    given = given_options(["--config", str(file)])
    assert given == given_options(options)
    assert given["model.adapter.r"] == 8
    assert given_options(["--config", str(file), "--model.adapter.r", "2"])["model.adapter.r"] == 2


def test_a_damaged_sweep_json_is_named(tmp_path):
    (tmp_path / "sweep.json").write_text('{"points": ')
    with pytest.raises(UserError, match=r"sweep.json cannot be read"):
        opened(tmp_path)


def test_a_secret_is_not_written_into_a_points_config(tmp_path):
    state = opened(tmp_path / "s")
    config = {"trainer": {"logger": {"init_args": {"api_key": "0123456789"}}}}
    with pytest.raises(UserError, match=r"trainer.logger.init_args.api_key is a secret"):
        state.write_configs({"r=2-seed=0": config})
    assert not (tmp_path / "s").exists()


def test_a_sweep_that_a_full_disk_has_stopped_at_its_start_goes_on(tmp_path, monkeypatch):
    write, left = state_module.atomic_text, 0

    def limited(path, text):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device", str(path))
        write(path, text)

    for allowed in range(3):  # writes before the disk is full
        folder, left = tmp_path / str(allowed), allowed
        state = opened(folder)
        folder.mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(state_module, "atomic_text", limited)
            with pytest.raises(OSError, match="No space"):
                state.write_configs({name: {"model": name} for name in state.asked})
        assert len(opened(folder).asked_points()) == 4


def test_the_time_left_follows_from_the_finished_points():
    points = [PointState(str(i), {}) for i in range(4)]
    assert time_left(points, {}, 1) is None
    points[0].status, points[0].seconds = "finished", 10.0
    points[1].status, points[1].seconds = "finished", 20.0
    points[2].seconds = 5.0  # of a start that was interrupted
    assert time_left(points, {}, 1) == 10.0 + 15.0
    assert time_left(points, {}, 2) == 12.5


def test_what_is_left_to_submit_keeps_its_number_and_finds_its_config_and_log(tmp_path):
    state = opened(tmp_path / "s")
    finish(state, "r=2-seed=0")
    state.save()
    state = opened(tmp_path / "s")
    state.points["r=4-seed=0"].status = "queued"
    points = to_submit(state)
    assert [point.name for point in points] == ["r=2-seed=1", "r=4-seed=1"]
    assert array_of(state, points, None) == "1,3"
    assert array_of(state, points, 2) == "1,3%2"
    state.write_configs({point.name: {"model": point.name} for point in points})
    link_tasks(state, points)
    assert "r=4-seed=1" in (state.folder / "tasks" / "3.yaml").read_text()
    (state.folder / "tasks" / "1.log").write_text("said")
    assert (state.folder / "r=2-seed=1" / "output.log").read_text() == "said"
    assert "3 of 4 points are not finished, 1 of them in the queue" in ending(state)
