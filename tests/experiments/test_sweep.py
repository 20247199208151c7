"""A sweep is interrupted, killed and extended, and each of its runs is that of a single ``fit``."""

import json
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import warm_python
from cli_driver import ENVIRONMENT, drive
from peft_lightning.experiments.sweep.process import PointProcess, describe_exit, last_line
from sweeping import ENV, in_this_process, warm

CONFIG = """
model:
  base_model: BASE
  learning_rate: 1.0e-2
  adapter: {class_path: LoRA, init_args: {r: 8, lora_dropout: 0.1}}
data: {train: rows.jsonl, val: rows.jsonl, batch_size: 4, cache_dir: cache}
trainer:
  max_epochs: 1
  accelerator: cpu
  logger: false
  default_root_dir: runs/ranks
  callbacks: [{class_path: step_trace.StepTrace}]
"""
SWEEP = ["sweep", "--config", "run.yaml", "--vary", "model.adapter.r=2,4"]
POINTS = [(2, 0), (2, 1), (4, 0), (4, 1)]


def name(r: int, seed: int) -> str:
    return f"r={r}-seed={seed}"


def trace(point: Path) -> list[str]:
    file = point / "trace.0"
    return file.read_text().splitlines() if file.exists() else []


def wait_until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, base, rows):
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "rows.jsonl").write_text(rows.read_text())
    (folder / "run.yaml").write_text(CONFIG.replace("BASE", str(base)))
    return folder


def start(folder, args, log, delay):
    with (folder / log).open("w") as file:
        return warm_python.start(
            ["-m", "peft_lightning", *args], cwd=folder,
            env={**ENV, "STEP_DELAY": str(delay)}, stdout=file, stderr=file,
        )  # fmt: skip


@pytest.fixture(scope="module")
def interrupted(folder):
    """A sweep of four points that Ctrl-C stops within the first, and SIGKILL within the second."""
    points = [folder / "runs" / "ranks" / name(*point) for point in POINTS]
    found = {}
    sweep = start(folder, [*SWEEP, "--seeds", "0,1"], "first.log", delay=5)
    wait_until(lambda: len(trace(points[0])) >= 1)
    done = drive(folder, [[*SWEEP, "--seeds", "0,1"]])[0]
    found["beside"] = done
    sweep.send_signal(signal.SIGINT)
    found["status"] = sweep.wait(60)
    found["output"] = (folder / "first.log").read_text()
    found["sweep"] = json.loads((folder / "runs" / "ranks" / "sweep.json").read_text())
    sweep = start(folder, [*SWEEP, "--seeds", "0,1"], "second.log", delay=0.5)
    wait_until(lambda: len(trace(points[1])) >= 2)
    sweep.kill()
    sweep.wait(60)
    wait_until(lambda: "SIGTERM: stopped at step" in (points[1] / "output.log").read_text())
    return found


@pytest.fixture(scope="module")
def finished(folder, interrupted):
    """The same sweep to its end."""
    return in_this_process(folder, [*SWEEP, "--seeds", "0,1"])


def test_ctrl_c_stops_the_running_point_with_a_checkpoint_and_says_how_to_go_on(interrupted):
    assert interrupted["status"] == 130
    assert "SIGINT: stopped after 0 of 4 points" in interrupted["output"]
    assert "the same command goes on" in interrupted["output"]
    statuses = [point["status"] for point in interrupted["sweep"]["points"]]
    assert statuses == ["stopped", "pending", "pending", "pending"]


def test_a_second_sweep_in_the_folder_is_refused_while_one_runs(interrupted):
    status, _, errors = interrupted["beside"]
    assert status == 2
    assert "another sweep runs in runs/ranks, process " in errors


def test_each_point_is_bit_for_bit_a_single_fit_that_nothing_has_stopped(folder, finished):
    assert finished[0] == 0, finished
    lines = [
        *(["fit", "--config", "run.yaml", "--model.adapter.r", str(r), "--seed_everything", str(s),
           "--trainer.default_root_dir", f"single/{name(r, s)}"] for r, s in POINTS)
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENVIRONMENT, "PYTHONPATH", ENV["PYTHONPATH"])
        assert [status for status, _, _ in drive(folder, lines)] == [0] * 4
    for point in POINTS:
        ours, single = folder / "runs/ranks" / name(*point), folder / "single" / name(*point)
        assert trace(ours) == trace(single)  # no step is lost or repeated
        one, other = (
            load_file(f / "checkpoints/last.ckpt/adapter_model.safetensors") for f in (ours, single)
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
        configs = [(f / "config.yaml").read_text() for f in (ours, single)]
        assert configs[0].replace("runs/ranks", "single") == configs[1]


def test_a_table_and_sweep_json_have_every_point_and_the_next_command_is_named(folder, finished):
    _, output, _ = finished
    for point in POINTS:
        assert f"\n{name(*point)}  finished" in f"\n{output}"
    assert output.endswith("  python -m peft_lightning compare runs/ranks\n")
    kept = json.loads((folder / "runs/ranks/sweep.json").read_text())
    for (r, seed), point in zip(POINTS, kept["points"], strict=True):
        summary = json.loads((folder / "runs/ranks" / name(r, seed) / "summary.json").read_text())
        assert point["settings"] == {"model.adapter.r": r, "seed_everything": seed}
        assert (point["status"], point["step"]) == ("finished", 6)
        assert point["val_loss"] == summary["best_val_loss"]
        assert point["seconds"] > 0


def test_more_values_add_only_what_is_new(folder, finished):
    times = {
        point: (folder / "runs/ranks" / name(*point) / "summary.json").stat().st_mtime_ns
        for point in POINTS
    }
    args = [*SWEEP[:-1], "model.adapter.r=2,4,16", "--seeds", "0"]
    status, output, errors = in_this_process(folder, args)
    assert status == 0
    assert "r=16-seed=0: finished" in errors
    assert "r=2-seed=0: " not in errors
    assert "2 more points of earlier sweeps are in runs/ranks" in output
    for point, before in times.items():
        summary = folder / "runs/ranks" / name(*point) / "summary.json"
        assert summary.stat().st_mtime_ns == before
    status, output, errors = in_this_process(folder, [*args, "--json"])
    assert [p["status"] for p in json.loads(output)["points"]] == ["finished"] * 3


def test_a_changed_config_is_refused_with_what_differs(folder, finished):
    args = [*SWEEP, "--seeds", "0,1", "--model.learning_rate", "0.5", "--data.max_length", "9"]
    status, _, errors = in_this_process(folder, args)
    assert status == 2
    assert "model.learning_rate: 0.01 there, 0.5 now" in errors
    assert "data.max_length: absent there, 9 now" in errors


def test_a_failing_point_is_tried_again_and_costs_the_others_nothing(folder):
    (folder / "once.py").write_text(
        "import os, pathlib\nfrom lightning.pytorch.callbacks import Callback\n"
        "class Killed(Callback):\n"
        "    def on_train_start(self, trainer, module):\n"
        "        here = pathlib.Path('killed')\n"
        "        if not here.exists():\n"
        "            here.touch()\n"
        "            os.kill(os.getpid(), 9)\n"
    )
    args = ["sweep", "--config", "run.yaml", "--vary", "data.train=no.jsonl,rows.jsonl"]
    args += ["--dir", "runs/failing", "--trainer.callbacks+=once.Killed", "--trainer.max_steps=1"]
    status, output, errors = in_this_process(folder, [*args, "--jobs", "2"])
    assert status == 1
    assert "train=rows.jsonl: failed after" in errors
    assert "killed by SIGKILL (out of memory?)" in errors
    assert "to be tried again" in errors
    assert "train=rows.jsonl: finished" in errors
    log = "runs/failing/train=no.jsonl/output.log"
    assert "train=no.jsonl failed 2 times: error: " in output
    assert f"(its output: {log})" in output
    assert (folder / log).read_text().count("error: ") == 2
    assert "1 of 2 points are not finished; the same command goes on with them" in output


def test_all_points_are_checked_before_the_first_one_runs(folder):
    def errors(*args):
        args = ["sweep", "--config", "run.yaml", "--dir", "runs/wrong", *args]
        status, _, errors = in_this_process(folder, args)
        assert status == 2
        assert not [p for p in (folder / "runs/wrong").glob("*") if p.name != "sweep.lock"]
        return errors

    assert "r=0: r must be a whole number of at least 1, got 0" in errors(
        "--vary", "model.adapter.r=2,0"
    )
    assert "LoRA has no option 'rr'; did you mean 'r'?" in errors("--vary", "model.adapter.rr=2")
    assert "no option 'modell'; did you mean 'model'?" in errors("--vary", "modell.x=2")
    assert "--seed: neither sweep nor fit has that option; did you mean" in errors("--seed", "1")
    assert "--model.adapter.init_args.r is given and so are values to vary" in errors(
        *("--model.adapter.init_args.r", "2", "--vary", "model.adapter.r=2,4")
    )
    assert "--trainer.default_root_dir: the folder of a sweep is given as --dir" in errors(
        *("--seeds", "0", "--trainer.default_root_dir", "x")
    )
    assert "--ckpt_path: the points of a sweep begin anew" in errors(
        *("--seeds", "0", "--ckpt_path", "last")
    )
    assert "--jobs must be at least 1" in errors("--seeds", "0", "--jobs", "0")
    assert "--trainer.max_steps must be at least 1, or -1 for no limit, got -7" in errors(
        "--vary", "trainer.max_steps=-7"
    )


def test_a_dry_run_prints_the_points_and_makes_nothing(folder):
    args = [*SWEEP, "--seeds", "0-2", "--dir", "runs/dry", "--dry-run"]
    status, output, _ = in_this_process(folder, args)
    assert status == 0
    assert output.splitlines()[0].split() == ["r=2-seed=0", "pending"]
    assert output.endswith("\n6 points, 6 to train\n")
    assert not (folder / "runs/dry").exists()


def test_a_folder_with_other_things_is_no_sweeps(folder):
    (folder / "runs/other").mkdir(parents=True)
    (folder / "runs/other/notes.txt").touch()
    status, _, errors = in_this_process(folder, [*SWEEP, "--dir", "runs/other"])
    assert status == 2
    assert "runs/other holds no sweep but notes.txt: give another --dir" in errors


def test_the_last_line_of_a_log_is_that_of_the_error(tmp_path):
    log = tmp_path / "log"
    log.write_text("error: old\n")
    start = log.stat().st_size
    assert last_line(log, start) == ""
    log.write_text("error: old\nTraceback\nerror: bad\nwarning: x\n\n")
    assert last_line(log, start) == "error: bad"
    assert last_line(tmp_path / "none") == ""
    assert describe_exit(-6) == "killed by SIGABRT"
    assert describe_exit(3) == "exit status 3"


def test_the_line_of_progress_is_taken_out_of_the_log(tmp_path):
    code = (
        "import os, sys, time\n"
        "assert os.isatty(2) and os.get_terminal_size(2).columns == 50\n"
        "e = sys.stderr\n"
        "e.write('a message\\n'); e.write('\\rstep 1'); e.flush(); time.sleep(0.3)\n"
        "e.write('\\rstep 2'); e.write('\\r      \\rsaid between\\n'); e.write('\\rstep 3')\n"
        "e.flush(); print('printed')\n"
    )
    process = PointProcess(["-c", code], tmp_path / "log", dict(ENV), columns=50, start=warm)
    seen = set()
    while process.poll() is None:
        seen.add(process.line)
    assert process.line == "step 3"
    assert "step 1" in seen
    lines = (tmp_path / "log").read_text().splitlines()
    assert sorted(lines) == ["a message", "printed", "said between", "step 3"]
