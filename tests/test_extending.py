"""The parts of one's own in docs/extending.md work as they stand, from YAML and from Python."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import warm_python
from cli_driver import ENVIRONMENT, drive

TEXT = (Path(__file__).parents[1] / "docs" / "extending.md").read_text("utf-8")
BLOCKS = {
    name: body
    for body, name in re.findall(r"```(?:python|yaml)\n(# (\S+\.(?:py|yaml))\n.*?)```", TEXT, re.S)
}
PARTS = ["format", "schedule", "optimizer", "metric", "callback"]
STOPPING = """\
from lightning.pytorch.callbacks import Callback


class StopAfter(Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 4:
            raise RuntimeError("pulled the plug")
"""
EACH_STEP = [
    "--trainer.callbacks+=peft_lightning.training.checkpoint.AdapterCheckpoint",
    "--trainer.callbacks.every_n_steps=1",
]


@pytest.fixture(scope="module")
def user(tmp_path_factory, base, rows):
    """A user's folder with all blocks of the page as files, and rows for its format."""
    folder = tmp_path_factory.mktemp("user")
    for name, body in BLOCKS.items():
        (folder / name).write_text(body.replace('"BASE"', repr(str(base))))
    (folder / "stopping.py").write_text(STOPPING)
    records = [json.loads(line) for line in rows.read_text().splitlines()]
    with (folder / "rows.jsonl").open("w") as file:
        for record in records:
            row = {"q": record["prompt"], "a": record["completion"]}
            file.write(json.dumps(row) + "\n")
    config = {
        "data": {"train": "rows.jsonl", "format": "my_formats.quiz", "val_fraction": 0.2},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1},
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(config))
    return folder


def line(base: Path, part: str, root: str, *more: str) -> list[str]:
    """Return the command line of a run with a part of the page."""
    inside = ".init_args" if part == "metric" else ""
    options = [f"--model{inside}.base_model={base}", f"--trainer.default_root_dir={root}"]
    return ["fit", "--config", "base.yaml", "--config", f"{part}.yaml", *options, *more]


def weights(folder: Path, run: str) -> dict[str, torch.Tensor]:
    return load_file(folder / run / "checkpoints/last.ckpt/adapter_model.safetensors")


@pytest.fixture(scope="module")
def runs(user, base):
    """Of each part a run, and one that an error stops in its fourth step and that goes on."""
    plain = ["fit", "--config", "base.yaml", f"--model.base_model={base}"]
    lines = [[*plain, "--trainer.default_root_dir=plain"]]
    for part in PARTS:
        stop = [*EACH_STEP, "--trainer.callbacks+=stopping.StopAfter"]
        lines += [
            line(base, part, part),
            line(base, part, f"{part}-again", *stop),
            line(base, part, f"{part}-again", "--ckpt_path=last"),
        ]
    results = drive(user, lines)
    for args, (status, _, errors) in zip(lines, results, strict=True):
        assert status == ("+=stopping" in " ".join(args)), errors
        assert status == 0 or "pulled the plug" in errors
    return user


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_yaml_names_continues_exactly(runs, part):
    ours, expected = weights(runs, f"{part}-again"), weights(runs, part)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


@pytest.mark.parametrize("part", ["schedule", "optimizer", "callback"])
def test_a_part_that_yaml_names_makes_another_run(runs, part):
    ours, plain = weights(runs, part), weights(runs, "plain")
    assert any(not torch.equal(ours[name], plain[name]) for name in plain)


def test_the_metric_is_logged_once_an_epoch(runs):
    summary = json.loads((runs / "metric" / "summary.json").read_text())
    assert 0 < summary["last"]["val/entropy"] < 6  # the logarithm of 260 tokens is 5.6
    again = json.loads((runs / "metric-again" / "summary.json").read_text())
    assert again["last"]["val/entropy"] == summary["last"]["val/entropy"]
    table = (runs / "metric/logs/version_0/metrics.csv").read_text().splitlines()
    column = table[0].split(",").index("val/entropy")
    assert len([row for row in table[1:] if row.split(",")[column]]) == 2


def test_audit_and_predict_know_the_format(runs, base):
    common = ["--config", "base.yaml", "--model.base_model", str(base)]
    last = ["--ckpt_path=format/checkpoints/last.ckpt", "--data.predict=rows.jsonl"]
    small = ["--model.predict_max_new_tokens=2", "--trainer.default_root_dir=format"]
    (first, audited, _), (second, _, errors) = drive(
        runs, [["audit", *common], ["predict", *common, *last, *small]]
    )
    assert first == 0  # the columns q and a are no format of ours
    assert "say 0 ab" in audited
    assert second == 0, errors
    assert len((runs / "format/predictions.jsonl").read_text().splitlines()) == 24


@pytest.mark.parametrize("part", PARTS)
def test_python_names_the_part_alike(user, part, monkeypatch):
    monkeypatch.chdir(user)
    monkeypatch.syspath_prepend(str(user))
    names: dict[str, object] = {}
    exec(BLOCKS[f"{part}.py"].replace('"BASE"', '"base"'), names)
    made = names.get("data") or names.get("module") or names["trainer"]
    kinds = {"format": "Quiz", "schedule": "InverseRoot", "optimizer": "Lookahead"}
    found = {
        "format": lambda: made.row_options.format,
        "schedule": lambda: type(made.lr_schedule).__name__,
        "optimizer": lambda: made.optimizer.func.__name__,
        "metric": lambda: type(made).__name__,
        "callback": lambda: [type(c).__name__ for c in made.callbacks],
    }[part]()
    kinds |= {"format": "my_formats.quiz", "metric": "WithEntropy", "callback": "GradientNoise"}
    assert kinds[part] in found


def test_a_command_line_of_ones_own_links_and_adds_options(user, base):
    args = ["my_cli.py", "fit", "--model.base_model", str(base), "--data.train", "rows.jsonl"]
    args += ["--data.format=my_formats.quiz", "--temperature", "2", "--data.batch_size", "3"]
    args += ["--model.adapter", "LoRA", "--model.adapter.r", "3", "--trainer.max_epochs", "1"]
    args += ["--trainer.accelerator", "cpu", "--trainer.default_root_dir", "cli"]
    done = warm_python.run(args, cwd=user, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(next((user / "cli").rglob("config.yaml")).read_text())
    assert config["model"]["adapter"]["init_args"]["r"] == 3
    assert config["temperature"] == 2.0
    summary = json.loads((user / "cli" / "summary.json").read_text())
    assert summary["status"] == "finished"
    adapter = json.loads((user / "cli/checkpoints/last.ckpt/adapter_config.json").read_text())
    assert adapter["r"] == 3


def test_the_program_finds_files_of_the_folder_that_it_is_started_in(user, base, tmp_path):
    """From another folder than the package's, without PYTHONPATH for the user's files."""
    code = (
        "import sys; sys.path[:] = [p for p in sys.path if p not in ('', '.')];"
        "from peft_lightning.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    args = ["audit", "rows.jsonl", "--tokenizer", str(base), "--data.format", "my_formats.quiz"]
    done = warm_python.run(["-c", code, *args], cwd=user, env={**os.environ, **ENVIRONMENT})
    assert done.returncode == 0, done.stderr
    assert "24" in done.stdout


def test_the_base_model_of_a_class_of_ones_own_is_the_one_that_is_given(user, base, monkeypatch):
    from peft_lightning.cli.config_index import read_arguments

    index = read_arguments(["--model.init_args.base_model", str(base)])
    assert index.get("model.base_model").value == str(base)
    assert index.get("model.base_model").where == "--model.init_args.base_model"


def test_every_block_is_run_here():
    assert {f"{part}.{kind}" for part in PARTS for kind in ("py", "yaml")} <= BLOCKS.keys()
    rest = BLOCKS.keys() - {f"{part}.{kind}" for part in PARTS for kind in ("py", "yaml")}
    assert all(name.startswith("my_") for name in rest)
    assert "my_cli.py" in rest
    assert sys.version_info >= (3, 11)
