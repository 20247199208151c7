"""The examples run as they stand, on a tiny base, and do what they say."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import warm_python
from cli_driver import drive

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
HOME = EXAMPLES / "home_assistant"


@pytest.fixture
def user(tmp_path, monkeypatch):
    """A working folder that looks like the repository's root, with a cache of its own."""
    (tmp_path / "examples").symlink_to(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    return tmp_path


def python(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder), "OMP_NUM_THREADS": "1"}
    return warm_python.run(args, cwd=folder, env={**os.environ, **environment})


def records(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (HOME / name).read_text("utf-8").splitlines()]


def test_the_table_of_examples_links_to_every_one():
    linked = re.findall(r"\]\(([\w./]+)\)", (EXAMPLES / "README.md").read_text())
    there = {file.name for file in EXAMPLES.iterdir() if file.name[0] not in "._"}
    assert {link.split("/")[0] for link in linked} == there - {"README.md"}
    assert all((EXAMPLES / link).exists() for link in linked)


# ---- configs ----------------------------------------------------------------------------------


def test_a_smoothing_out_of_range_is_named(user):
    from examples.experiments.label_smoothing import LabelSmoothing

    with pytest.raises(ValueError, match=r"smoothing must be in \[0, 1\), got 1\.0"):
        LabelSmoothing("x", smoothing=1.0)


CONFIGS = {
    "my_ia3": ("my_ia3", "examples.my_ia3.IA3"),
    "label_smoothing": ("experiments/label_smoothing", "LabelSmoothing"),
    "distillation": ("experiments/distillation", "Distillation"),
    "multi_task": ("experiments/multi_task", "MultiTask"),
    "dpo": ("experiments/dpo", "PreferenceData"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, base):
    """A folder in which each config has trained for two steps, and what each command returned."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "examples").symlink_to(EXAMPLES)
    options = ["--model.base_model", str(base), "--model.dtype", "float32"]
    options += ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "1"]
    options += ["--trainer.accelerator", "cpu", "--data.cache_dir", "cache"]
    lines = [
        ["fit", "--config", f"examples/{file}.yaml", *options]
        + (["--model.teacher", str(base)] if name == "distillation" else [])
        for name, (file, _) in CONFIGS.items()
    ]
    lines.append(["generate", "--ckpt_path", "runs/dpo/checkpoints/last.ckpt", "--prompt", "hi"])
    return folder, drive(folder, lines)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_of_ones_own_class_trains_from_the_repositorys_root(trained, name):
    folder, results = trained
    status, _, errors = results[[*CONFIGS].index(name)]
    assert status == 0, errors
    root = folder / "runs" / name
    assert CONFIGS[name][1] in (root / "config.yaml").read_text()
    summary = json.loads((root / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 2)


def test_what_dpo_has_trained_answers_as_any_adapter(trained):
    _, results = trained
    assert results[-1][0] == 0, results[-1][2]


# ---- the notebook -----------------------------------------------------------------------------


def test_the_notebook_trains_saves_and_loads_and_hf_peft_computes_its_logits(user, base):
    cells, commented = (EXAMPLES / "notebook.py").read_text().rsplit("# %%\n", 1)
    assert all(line.startswith("#") for line in commented.splitlines())
    for_peft = "".join(line[2:] + "\n" for line in commented.splitlines())
    (user / "notebook.py").write_text(cells + for_peft)
    done = python(user, "notebook.py", str(base))
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", done.stdout)]
    assert len(losses) >= 3
    assert losses[-1] < losses[0] - 0.1
    assert (user / "runs" / "notebook" / "adapter" / "adapter_config.json").is_file()
    difference = re.search(r"differ from ours by at most (\S+)", done.stdout)
    assert float(difference[1]) < 1e-4


def test_the_options_of_a_notebooks_kernel_are_not_taken_for_a_model(monkeypatch):
    cell = (EXAMPLES / "notebook.py").read_text().split("# %%\n")[1].split("# %%")[0]
    base = re.search(r'^BASE = "(.*?)"', cell, re.MULTILINE)[1]
    rows = re.search(r'^ROWS = "(.*?)"', cell, re.MULTILINE)[1]
    for arguments, expected in (
        (["-f", "kernel.json"], [base, rows]),
        (["--f=kernel.json"], [base, rows]),
        (["own/model"], ["own/model", rows]),
        (["own/model", "own.jsonl"], ["own/model", "own.jsonl"]),
    ):
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        names: dict[str, Any] = {}
        exec(cell, names)
        assert [names["BASE"], names["ROWS"]] == expected


# ---- the home assistant's rows ----------------------------------------------------------------


@pytest.mark.parametrize(("name", "least"), [("train.jsonl", 320), ("val.jsonl", 80)])
def test_every_completion_is_a_call_of_a_function_that_the_readme_counts(name, least):
    table = re.findall(
        r"^\| `(\w+)` \| .* \| (\d+) \| (\d+) \|$",
        (HOME / "README.md").read_text("utf-8"),
        re.MULTILINE,
    )
    column = {"train.jsonl": 1, "val.jsonl": 2}[name]
    calls = [json.loads(row["completion"]) for row in records(name)]
    assert len(calls) >= least
    assert all(call.keys() == {"function", "arguments"} for call in calls)
    assert Counter(call["function"] for call in calls) == {
        row[0]: int(row[column]) for row in table
    }


def test_every_completion_is_written_in_one_way():
    for row in records("train.jsonl") + records("val.jsonl"):
        assert row.keys() == {"prompt", "completion"}
        assert row["completion"] == json.dumps(json.loads(row["completion"]), ensure_ascii=False)


def test_no_prompt_is_repeated_so_none_of_val_is_in_train():
    prompts = [row["prompt"].casefold() for row in records("train.jsonl") + records("val.jsonl")]
    assert [p for p, n in Counter(prompts).items() if n > 1] == []
