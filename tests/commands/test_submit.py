"""``submit``: the script that it writes, and what it refuses before a job waits in a queue."""

import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cli_driver import ENVIRONMENT
from peft_lightning.__main__ import main
from peft_lightning.training.cluster.job_script import array_tasks

ROOT = Path(__file__).parents[2]
CONFIG = "trainer: {devices: 2, num_nodes: 3}\n"


@pytest.fixture
def submit(tmp_path, monkeypatch, capsys):
    """Run the command in a folder with a config; return (status, output, errors)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)
    (tmp_path / "free.yaml").write_text("trainer: {max_steps: 1}\n")

    def run(*args):
        status = main(["submit", *args])
        return status, *capsys.readouterr()

    return run


def flags(script):
    """Return the options of sbatch in a script."""
    found = {}
    for line in script.splitlines():
        if line.startswith("#SBATCH "):
            [word] = shlex.split(line.removeprefix("#SBATCH "))
            name, _, value = word.removeprefix("--").partition("=")
            found[name] = value
    return found


def fit_words(script, **variables):
    """Return the words of fit as the shell would hand them on."""
    line = script.splitlines()[-1]
    show = line.replace(line[: line.index(" -m ")], "printf '%s\\n'")
    done = subprocess.run(
        ["bash", "-c", show], env=variables, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[3:]


def test_tasks_follow_the_config(submit, tmp_path):
    status, script, _ = submit("--config", "run.yaml", "--dry-run")
    assert status == 0
    assert flags(script) == {
        "job-name": "run",
        "chdir": str(tmp_path),
        "output": "runs/run/slurm-%j.out",
        "nodes": "3",
        "ntasks-per-node": "2",
        "requeue": "",
        "open-mode": "append",
        "signal": "USR1@120",
    }
    assert script.splitlines()[-1].startswith("exec srun --kill-on-bad-exit=1 ")
    words = "--config run.yaml --ckpt_path last --trainer.num_nodes 3 --trainer.devices 2"
    assert fit_words(script) == f"{words} --trainer.default_root_dir runs/run".split()
    assert not (tmp_path / "runs").exists()


def test_a_checkpoint_that_the_config_names_begins_a_new_run_and_resume_goes_on_from_its_last(
    submit, tmp_path
):
    (tmp_path / "from.yaml").write_text("ckpt_path: other.ckpt\n")
    (tmp_path / "null.yaml").write_text("ckpt_path: null\n")

    def named(*args):
        words = fit_words(submit(*args, "--dry-run")[1])
        return [b for a, b in itertools.pairwise(words) if a == "--ckpt_path"]

    assert named("--config", "from.yaml") == []  # fit reads it there
    assert named("--config", "from.yaml", "--resume") == ["last"]
    assert named("--config", "from.yaml", "--ckpt_path", "none") == ["none"]
    assert named("--config", "null.yaml") == ["last"]


def test_options_of_slurm_reach_it(submit):
    options = "--nodes 2 --gpus 4 --cpus 8 --mem 64G --time 1-12 --partition a --account b --qos c"
    status, script, _ = submit(
        "--config", "free.yaml", *options.split(), "--job-name", "x", "--sbatch=--exclusive",
        "--dry-run",
    )  # fmt: skip
    assert status == 0
    expected = {
        "nodes": "2", "ntasks-per-node": "4", "gpus-per-node": "4", "cpus-per-task": "8",
        "mem": "64G", "time": "1-12", "partition": "a", "account": "b", "qos": "c",
        "job-name": "x", "exclusive": "",
    }  # fmt: skip
    assert expected.items() <= flags(script).items()
    assert 'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"' in script


def test_each_task_of_an_array_has_its_folder_and_number(submit):
    _, script, _ = submit(
        "-c", "free.yaml", "--array", "1,4%1", "--seed_everything", "%a", "--dry-run",
        "--model.sample_prompts", "[it's $HOME]", "--trainer.default_root_dir", "out/lr",
    )  # fmt: skip
    assert flags(script)["array"] == "1,4%1"
    assert flags(script)["output"] == "out/lr/%a/slurm-%A_%a.out"
    assert flags(script)["job-name"] == "lr"
    words = fit_words(script, SLURM_ARRAY_TASK_ID="4")
    assert words[-2:] == ["--trainer.default_root_dir", "out/lr/4"]
    assert words[words.index("--seed_everything") + 1] == "4"
    assert "[it's $HOME]" in words


def test_a_folder_in_the_home_folder_is_written_out(submit, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    args = ["--config", "run.yaml", "--trainer.default_root_dir", "~/out", "--dry-run"]
    script = submit(*args)[1]
    assert flags(script)["output"] == f"{tmp_path}/out/slurm-%j.out"
    assert fit_words(script)[-1] == f"{tmp_path}/out"


def test_an_array_of_configs_is_read_task_by_task(submit, tmp_path):
    (tmp_path / "sweep").mkdir()
    for task in (0, 1):
        (tmp_path / "sweep" / f"{task}.yaml").write_text("trainer: {devices: 2}\n")
    args = ["--config", "sweep/%a.yaml", "--array", "0-1", "--dry-run"]
    _, script, _ = submit(*args)
    assert flags(script)["ntasks-per-node"] == "2"
    assert flags(script)["output"] == "runs/%a/slurm-%A_%a.out"
    (tmp_path / "sweep" / "1.yaml").write_text("trainer: {devices: 3}\n")
    assert "tasks of the array differ" in submit(*args)[2]
    (tmp_path / "sweep" / "1.yaml").unlink()
    assert re.search(r"no config file sweep/1\.yaml", submit(*args)[2])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--gpus", "4"], r"--gpus 4, but run\.yaml, line 1 says trainer\.devices 2"),
        (["--nodes", "2"], r"--nodes 2, but .* says trainer\.num_nodes 3"),
        (["--gpus", "2", "--trainer.accelerator", "cpu"], "--gpus 2, but .* is cpu"),
        (["--trainer.accelerator", "gpu"], r"is gpu: give --gpus"),
        (["--nodes", "0"], "--nodes must be at least 1, got 0"),
        (["--job-name", "bash"], "called 'bash'.*Lightning does not see SLURM"),
        (["--job-name", "a b"], "called 'a b'"),
        (["--trainer.default_root_dir", "out/$USER"], r"'out/\$USER'.*same after a requeue"),
        (["--trainer.default_root_dir", "out/%a"], "'out/%a'.*only the tasks of an array"),
        (["--array", "3-1"], "--array 3-1: write the tasks as 0-3"),
        (["--time", "soon"], "--time soon: write it as HOURS"),
        (["--sbatch=exclusive"], r"--sbatch=--exclusive, got exclusive"),
        (["--partition", "gpu\ntouch X"], r"gpu\\ntouch X.*cannot have control characters"),
        (["--sbatch=--exclusive\ntouch X"], "cannot have control characters"),
        (["--gpu", "2"], "--gpu: neither submit nor fit .* did you mean --gpus"),
        (["--config", "no.yaml"], r"no config file no\.yaml"),
        ([], "no sbatch here: submit on a login node"),
    ],
)
def test_what_would_fail_in_the_queue_is_refused(submit, args, message, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    status, _, errors = submit("--config", "run.yaml", *args)
    assert status == 2
    assert re.search(message, errors), errors
    lines = [line for line in errors.splitlines() if not line.startswith("submit: ")]  # progress
    assert len(lines) == 1


def test_a_folder_that_holds_a_run_is_refused_unless_it_is_to_go_on(submit, tmp_path):
    (tmp_path / "runs" / "run" / "checkpoints").mkdir(parents=True)
    status, _, errors = submit("--config", "run.yaml", "--dry-run")
    assert (status, "runs/run holds a run already: give --resume" in errors) == (2, True)
    assert submit("--config", "run.yaml", "--dry-run", "--resume")[0] == 0


def test_the_script_in_scripts_has_the_flags_of_submit(submit):
    _, script, _ = submit("--config", "free.yaml", "--dry-run")
    own = flags((ROOT / "scripts" / "train.sbatch").read_text())
    rendered = flags(script)
    for name in ("requeue", "open-mode", "signal", "ntasks-per-node"):
        assert own[name] == rendered[name]
    assert "exec srun --kill-on-bad-exit=1 " in (ROOT / "scripts" / "train.sbatch").read_text()


def test_submitting_does_not_import_torch(tmp_path):
    (tmp_path / "run.yaml").write_text(CONFIG)
    code = (
        "import sys; from peft_lightning.__main__ import main;"
        "main(['submit', '--config', 'run.yaml', '--dry-run']); assert 'torch' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, check=True, timeout=60
    )


def test_arrays_are_read_as_slurm_reads_them():
    assert array_tasks("0-3") == [0, 1, 2, 3]
    assert array_tasks("7,1-2%2") == [7, 1, 2]
    assert array_tasks("0-8:4") == [0, 4, 8]
