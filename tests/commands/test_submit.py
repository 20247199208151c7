"""``submit``: the script that it writes, and what it refuses before a job waits in a queue."""

import itertools
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from peft_lightning.__main__ import main
from peft_lightning.cli.job_options import name_of_folder
from peft_lightning.training.cluster.job_script import array_tasks
from peft_lightning.training.cluster.submission import changes_since

ROOT = Path(__file__).parents[2]
FREE = "model: {base_model: BASE}\ndata: {train: rows.jsonl}\n"
CONFIG = FREE + "trainer: {devices: 2, num_nodes: 3}\n"


@pytest.fixture
def submit(tmp_path, monkeypatch, capsys, base, rows):
    """Run the command in a folder with configs and rows; return (status, output, errors)."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(rows, tmp_path / "rows.jsonl")
    (tmp_path / "base").symlink_to(base)
    (tmp_path / "run.yaml").write_text(CONFIG.replace("BASE", "base"))
    (tmp_path / "free.yaml").write_text(FREE.replace("BASE", "base"))

    def run(*args):
        status = main(["submit", *args])
        output, errors = capsys.readouterr()
        lines = [line for line in errors.splitlines(True) if not line.startswith("submit: ")]
        return status, output, "".join(lines)  # without progress

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
    copy = "--config runs/run/submission/config.yaml"
    words = f"{copy} --ckpt_path last --trainer.num_nodes 3 --trainer.devices 2"
    assert fit_words(script) == f"{words} --trainer.default_root_dir runs/run".split()
    assert not (tmp_path / "runs").exists()


def test_a_checkpoint_that_the_config_names_begins_a_new_run_and_resume_goes_on_from_its_last(
    submit, tmp_path
):
    given = (tmp_path / "free.yaml").read_text()
    (tmp_path / "from.yaml").write_text(given + "ckpt_path: other.ckpt\n")
    (tmp_path / "null.yaml").write_text(given + "ckpt_path: null\n")
    (tmp_path / "runs" / "from" / "checkpoints").mkdir(parents=True)

    def named(*args):
        words = fit_words(submit(*args, "--dry-run")[1])
        return [b for a, b in itertools.pairwise(words) if a == "--ckpt_path"]

    new = ("--trainer.default_root_dir", "runs/new")
    assert named("--config", "from.yaml", *new) == []  # fit reads it there
    assert named("--config", "from.yaml", "--resume") == ["last"]
    assert named("--config", "from.yaml", *new, "--ckpt_path", "none") == ["none"]
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
        config = (tmp_path / "free.yaml").read_text() + "trainer: {devices: 2}\n"
        (tmp_path / "sweep" / f"{task}.yaml").write_text(config)
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
        (["--gpus", "4"], r"--gpus 4, but run\.yaml, line 3 says trainer\.devices 2"),
        (["--nodes", "2"], r"--nodes 2, but .* says trainer\.num_nodes 3"),
        (["--gpus", "2", "--trainer.accelerator", "cpu"], "--gpus 2, but .* is cpu"),
        (["--trainer.accelerator", "gpu"], r"is gpu: give --gpus"),
        (["--nodes", "0"], "--nodes must be at least 1, got 0"),
        (["--time", "1"], "--time 1 is 60 s, of which the last 120 are for saving"),
        (["--mem", "banana"], "--mem banana: write it as a number with a unit"),
        (["--cpus", "0"], "--cpus must be at least 1, got 0"),
        (["--sbatch=--array=0-3"], "--sbatch=--array=0-3: give it as submit's own --array"),
        (["--sbatch=--job-name=bash"], "give it as submit's own --job_name"),
        (["--sbatch=-n3"], "--sbatch=-n3: give it as submit's own --gpus"),
        (["--sbatch=--output=x"], "submit sets --output itself"),
        (["--trainer.max_epoch", "3"], r"max_epoch.*did you mean"),
        (["--model.adapter.lora_alfa", "3"], r"lora_alfa.*did you mean"),
        (["--data.train", "no.jsonl"], r"no\.jsonl"),
        (["--model.base_model", "./no"], r"there is no \./no"),
        (["--trainer.max_steps", "0"], "--trainer.max_steps must be at least 1"),
        (["--resume"], "--resume: runs/run holds no run to continue"),
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
    asks_slurm = "no sbatch" in message
    monkeypatch.setenv("PATH", "/nowhere")
    status, _, errors = submit(
        "--config", "run.yaml", *args, *([] if asks_slurm else ["--dry-run"])
    )
    assert status == 2
    assert re.search(message, errors), errors
    assert len(errors.splitlines()) == 1


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


SBATCH = """#!/bin/sh
cat > script; env > variables; echo 17
"""
SCONTROL = """#!/bin/sh
echo "JobId=17 ArrayJobId=16 ArrayTaskId=2 JobName=x JobState=$(cat state) Restarts=0"
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A SLURM of scripts: what it is told is in the files script and variables."""
    programs = {"sbatch": SBATCH, "scontrol": SCONTROL, "sinfo": "#!/bin/sh\necho 'main* 4 8'\n"}
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    (tmp_path / "state").write_text("PENDING")
    return tmp_path


def test_a_job_runs_from_copies_whatever_becomes_of_its_config(submit, slurm):
    (slurm / "lora.yaml").write_text("{class_path: LoRA, init_args: {r: 3}}\n")
    (slurm / "run.yaml").write_text(
        "model: {base_model: base, adapter: lora.yaml}\ndata: {train: rows.jsonl}\n"
    )
    (slurm / "more.yaml").write_text("{max_steps: 5}\n")
    status, output, errors = submit("--config", "run.yaml", "--trainer", "more.yaml")
    assert (status, output) == (0, "submitted job 17; its log is runs/run/slurm-17.out\n"), errors
    (slurm / "lora.yaml").write_text("nonsense")
    words = fit_words((slurm / "script").read_text(), SLURM_JOB_ID="17")
    files = [word for word in words if word.endswith(".yaml")]
    assert files == [f"runs/run/submission/config-{i}.yaml" for i in (0, 1)]
    copied = yaml.safe_load((slurm / files[0]).read_text())
    assert copied["model"]["adapter"]["init_args"] == {"r": 3}
    assert (slurm / files[1]).read_text() == "{max_steps: 5}\n"


def test_data_and_code_that_change_behind_a_submission_are_said(submit, slurm):
    folder = slurm / "runs/run"
    assert submit("--config", "run.yaml", "--nodes", "3")[0] == 0
    assert changes_since(folder) == []
    os.utime(slurm / "rows.jsonl", (0, 0))
    assert changes_since(folder) == []  # its content is what it was
    (slurm / "rows.jsonl").write_text((slurm / "rows.jsonl").read_text() + "\n")
    assert changes_since(folder) == [
        f"changed since the job was submitted, data: {slurm}/rows.jsonl"
    ]
    facts = folder / "submission/submission.json"
    facts.write_text(re.sub(r'("peft_lightning [^"]*": ")[^"]*', r"\1other", facts.read_text()))
    assert "code: peft_lightning" in changes_since(folder)[1]


def test_a_folder_belongs_to_the_job_that_was_submitted_until_it_has_ended(submit, slurm):
    again = ("--config", "run.yaml")
    assert submit(*again)[0] == 0
    status, _, errors = submit(*again)
    assert status == 2
    assert "runs/run is that of job 17, which is PENDING: scancel 17 first" in errors
    (slurm / "state").write_text("CANCELLED")
    assert submit(*again)[0] == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--nodes", "5"], "--nodes 5, but the partition main has 4"),
        (["--trainer.devices", "9"], "9 processes of 1 CPUs on each node are 9 CPUs"),
        (["--cpus", "5", "--trainer.devices", "2"], "2 processes of 5 CPUs"),
        (["--partition", "gpu"], "--partition gpu: there are main"),
    ],
)
def test_what_the_partition_does_not_have_is_refused(submit, slurm, args, message):
    status, _, errors = submit("--config", "free.yaml", *args)
    assert (status, errors.count("\n")) == (2, 1)
    assert message in errors


def test_variables_of_the_shell_do_not_undo_options_and_those_that_count_are_named(
    submit, slurm, monkeypatch
):
    for name in ("SBATCH_TIMELIMIT", "SBATCH_NO_REQUEUE", "SBATCH_ACCOUNT", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_CONF", "kept")
    status, output, _ = submit("--config", "free.yaml", "--time", "1:00:00")
    assert status == 0
    assert "SBATCH_TIMELIMIT=1 is not heeded" in output
    assert "SBATCH_NO_REQUEUE=1 is not heeded" in output
    assert "SBATCH_ACCOUNT=1 is an option of this job" in output
    there = dict(line.split("=", 1) for line in (slurm / "variables").read_text().splitlines())
    assert {k for k in there if k.startswith(("SBATCH_", "SLURM_"))} == {
        "SBATCH_ACCOUNT",
        "SLURM_CONF",
    }


def test_two_configs_make_a_valid_name_of_the_job(submit):
    script = submit("--config", "free.yaml", "--config", "run.yaml", "--dry-run")[1]
    assert flags(script)["job-name"] == "free-run"
    assert name_of_folder("bash") == "fit-bash"


def test_arrays_are_read_as_slurm_reads_them():
    assert array_tasks("0-3") == [0, 1, 2, 3]
    assert array_tasks("7,1-2%2") == [7, 1, 2]
    assert array_tasks("0-8:4") == [0, 4, 8]
