"""What README.md shows runs, and what it names is there."""

import dataclasses
import itertools
import json
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml

import warm_python
from cli_driver import ENVIRONMENT, drive, saved_step, wait_for
from peft_lightning import CausalLMModule, LoRA, SFTDataModule
from peft_lightning.adapters import Adapter
from peft_lightning.cli.class_lookup import options_of
from peft_lightning.data.rows.formats import FORMATS, REQUIRED_COLUMNS
from peft_lightning.files import user_cache
from tiny_run import fit

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PROGRAM = "python -m peft_lightning"
MODEL = "~/.cache/peft_lightning/models/SmolLM2-135M-Instruct"
EPOCH = {"limit_train_batches": 1, "limit_val_batches": 1, "accelerator": "cpu"}
SMALL = {**EPOCH, "limit_predict_batches": 1}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Return the arguments of every command of the program in a bash block."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [w[3:] for w in words if " ".join(w[:3]) == PROGRAM]


def table(header: str) -> list[list[str]]:
    """Return the cells of the table whose first line starts with ``header``."""
    rows = re.search(rf"^\| {header} .*\n\|[-|:]+\|\n((?:\|.*\n)+)", README, re.MULTILINE)[1]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.fixture(scope="module")
def base(base, tmp_path_factory):
    """The tiny base with room for the home assistant's prompts, byte by byte, and answers."""
    roomy = shutil.copytree(base, tmp_path_factory.mktemp("roomy") / "base")
    config = json.loads((roomy / "config.json").read_text())
    (roomy / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))
    return roomy


def on_tiny_base(config: str, base: Path) -> str:
    """Return a config as one of a step each epoch, on a tiny base."""
    content = yaml.safe_load(config)
    content["model"]["base_model"] = str(base)
    content["model"]["dtype"] = "float32"
    content["model"]["sample_prompts"] = ["it's freezing in the den"]
    content["data"]["cache_dir"] = "cache"
    content["trainer"] |= SMALL
    return yaml.safe_dump(content)


@pytest.fixture(scope="module")
def user(tmp_path_factory, base):
    """A folder like the repository's root, whose configs have a tiny base."""
    folder = tmp_path_factory.mktemp("root")
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "configs").mkdir()
    for file in (ROOT / "configs").glob("*.yaml"):
        (folder / "configs" / file.name).write_text(on_tiny_base(file.read_text("utf-8"), base))
    return folder


def with_model_of_quick_start(caches: Path, base: Path) -> None:
    """Make a folder of caches that is the user's own, but for the tiny base as a model in it."""
    ours = caches / "peft_lightning"
    (ours / "models").mkdir(parents=True)
    (ours / "models" / Path(MODEL).name).symlink_to(base)
    own = user_cache("models").parent
    for entry in own.iterdir() if own.is_dir() else ():
        if entry.name != "models":
            (ours / entry.name).symlink_to(entry)


def small_options(line: list[str]) -> list[str]:
    """Return what makes a ``fit`` without a config as short as those with one."""
    if line[0] != "fit" or "--config" in line:
        return []
    return [word for name, v in EPOCH.items() for word in (f"--trainer.{name}", str(v))]


FEWER = {"model.adapter.r=2,4,8,16": "model.adapter.r=2,4", "0,1,2": "0"}  # points of a sweep


@pytest.fixture(scope="module")
def ran(user, base):
    """(arguments, status, output, errors) of every command and every YAML block, in order."""
    lines = commands()
    with_model_of_quick_start(user / "caches", base)
    for i, block in enumerate(blocks("yaml")):
        (user / f"readme{i}.yaml").write_text(on_tiny_base(block, base))
        lines.append(["fit", "--config", f"readme{i}.yaml"])
    for block in blocks("console"):
        lines += [shlex.split(line)[4:] for line in block.splitlines() if line.startswith("$ ")]
    run = [[FEWER.get(word, word) for word in line] + small_options(line) for line in lines]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENVIRONMENT, "XDG_CACHE_HOME", str(user / "caches"))
        results = drive(user, run)
    return [(line, *result) for line, result in zip(lines, results, strict=True)]


# ---- what it shows runs -----------------------------------------------------------------------


def test_every_command_runs(ran):
    checked = [result for result in ran if result[0] in commands()]
    assert {"fit", "validate", "predict", "generate"} <= {args[0] for args, *_ in checked}
    for args, status, _, errors in checked:
        assert status == 0, f"{args}: {errors}"


def test_every_yaml_block_trains_and_its_folder_has_its_name(ran, user):
    assert blocks("yaml")
    for i in range(len(blocks("yaml"))):
        summary = user / "runs" / f"readme{i}" / "summary.json"
        assert json.loads(summary.read_text())["steps"] == 3


def test_the_commands_work_in_the_order_in_which_they_stand(ran, user):
    """Each ``fit`` trains as many epochs, of a step each, as stand there; a new run is new."""

    def number(args):
        given = dict(itertools.pairwise(args))
        return int(given.get("--trainer.max_epochs", 3))

    fits = [(args, errors) for args, _, _, errors in ran if args in commands() and args[0] == "fit"]
    told = [number(args) for args, errors in fits if "--help" not in args]
    assert told == [3, 3, 3, 5, 3]  # no config, a config, two resumes, from trained weights
    runs = {name: user / "runs" / name for name in ("default", "r8", "more")}
    steps = {n: json.loads((r / "summary.json").read_text())["steps"] for n, r in runs.items()}
    assert steps == {"default": 3, "r8": 5, "more": 5}  # of r8's config, as it was last
    names = {json.loads((run / "run.json").read_text())["run"] for run in runs.values()}
    assert len(names) == 3
    resumed = ["Restoring states from" in errors for args, errors in fits if "--help" not in args]
    assert resumed == [False, False, False, True, False]  # the first of the two had nothing left


def test_every_session_shows_the_real_output(ran):
    sessions = [session for block in blocks("console") for session in block.split("$ ")[1:]]
    assert sessions
    shown = ran[-len(sessions) :]
    for session, (_, status, output, errors) in zip(sessions, shown, strict=True):
        assert (output + errors).splitlines() == session.splitlines()[1:]
        assert status == (2 if "error: " in session else 0)


def test_the_other_commands_are_scripts_that_are_there():
    lines = [shlex.split(line, comments=True) for b in blocks("bash") for line in b.splitlines()]
    others = [w for w in lines if w and " ".join(w[:3]) != PROGRAM and w[0] != "source"]
    assert len(others) >= 2
    for program, argument in others:
        assert program == "bash"
        assert (ROOT / argument).is_file()


def tree() -> list[str]:
    """Return the paths of the tree of a run's folder, that folder first."""
    block = next(block for block in blocks("text") if block.startswith("runs/"))
    above: list[str] = []
    found = []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        above = [*above[:depth], line.split()[0].rstrip("/")]
        found.append("/".join(above))
    return found


def test_the_tree_shows_what_a_run_leaves(ran, user):
    """Every path in it is there, and nothing lies in the run's folder that it does not name."""
    folder, *paths = tree()
    assert len(paths) > 8
    once = {f"{folder}/checkpoints/previous.ckpt"}  # so short a run saves but once
    assert {path for path in paths if not list(user.glob(path))} <= once
    named = {path.split("/")[2] for path in paths}
    assert {f.name for f in (user / folder).iterdir()} - named <= {"samples.jsonl"}


@pytest.fixture
def python_blocks(base, tmp_path, monkeypatch):
    """The names that each Python block defines, on a tiny base."""
    monkeypatch.chdir(tmp_path)
    found = []
    for source in blocks("python"):
        source = source.replace(MODEL, str(base))
        defined: dict[str, Any] = {}
        exec(source, defined)
        found.append(defined)
    return found


def test_every_python_block_runs_and_the_notebook_cell_leaves_the_base_as_it_was(
    python_blocks, base, tmp_path
):
    import torch

    from peft_lightning import load_adapter, load_base_model

    cell = next(names for names in python_blocks if "adapter" in names)
    fresh = load_base_model(str(base)).state_dict()
    assert fresh.keys() == cell["model"].state_dict().keys()
    assert all(torch.equal(t, fresh[n]) for n, t in cell["model"].state_dict().items())
    (folder,) = re.findall(r'^save_adapter\(.*"(runs/\S+)"', README, re.MULTILINE)
    assert load_adapter(cell["model"], tmp_path / folder).r == cell["adapter"].r


def test_the_experiment_trains(python_blocks, base, rows, tmp_path):
    values = [value for names in python_blocks for value in names.values()]
    classes = [v for v in values if isinstance(v, type) and issubclass(v, CausalLMModule)]
    (experiment,) = {cls for cls in classes if cls is not CausalLMModule}
    trainer = fit(base, rows, tmp_path / "run", module_class=experiment, max_steps=2)
    assert trainer.global_step == 2


# ---- what it names is there -------------------------------------------------------------------


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_local_link_points_to_something_that_is_there(page):
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text("utf-8"))
    local = [link for link in links if not link.startswith("https://")]
    assert page != "README.md" or len(local) >= 3
    assert [link for link in local if not (ROOT / link).exists()] == []


def test_the_commit_hooks_are_commands_of_the_test_script():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    script = (ROOT / "scripts" / "test.sh").read_text().splitlines()
    checks = [re.split(r" \.$| > ", line)[0] for line in script if line.startswith(".venv/bin/")]
    assert [hook["entry"] for hook in hooks] == checks[:3]
    assert {hook["language"] for hook in hooks} == {"system"}  # which fetches nothing


def ours():
    """Return the classes of adapters of the package; a process of tests may have made others."""
    return [c for c in Adapter.by_peft_type.values() if c.__module__.startswith("peft_lightning.")]


def test_every_option_it_names_exists():
    sections: dict[str, type] = {
        "model": CausalLMModule,
        "data": SFTDataModule,
        "trainer": L.Trainer,
    }
    known = {f"{name}.{option}" for name, cls in sections.items() for option in options_of(cls)}
    known |= {f"model.adapter.{field.name}" for cls in ours() for field in dataclasses.fields(cls)}
    known |= {"model.class_path", "model.adapter.help"}
    text = re.sub(r"^```console\n.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    named = re.findall(r"(?:--|`)((?:model|data|trainer)\.[\w.]+)", text)
    assert len(named) > 4
    assert set(named) <= known


def test_the_table_of_methods_has_every_adapter_with_its_rate():
    rates = {names(row[0])[0]: float(row[2]) for row in table("method")}
    assert rates == {c.__name__: c.learning_rate for c in ours()}


def test_the_variants_of_lora_that_it_names_are_options():
    text = README[README.index("LoRA has HF PEFT's variants") :].partition("\n\n")[0]
    options = {name.partition(":")[0] for name in names(text)} - {"olora"}
    assert len(options) > 5
    assert options <= {field.name for field in dataclasses.fields(LoRA)}


def test_the_table_of_formats_has_every_format_with_the_columns_it_needs():
    rows = {names(row[0])[0]: names(row[1]) for row in table("format")}
    own = [name for name in rows if "." in name]
    assert len(own) == 1
    assert set(rows) - set(own) == set(FORMATS)
    for name, needed in REQUIRED_COLUMNS.items():
        assert set(needed) <= set(rows[name])


# ---- what it says of a signal -----------------------------------------------------------------


def test_sigterm_gives_the_status_that_it_says_and_leaves_a_checkpoint(user):
    said = re.search(r"^\| SIGTERM \| .* \| (\d+) \|$", README, re.MULTILINE)[1]
    root = user / "runs" / "stopped"
    command = ["-m", "peft_lightning", "fit", "--config", "configs/lora.yaml"]
    command += ["--trainer.max_steps", "-1", "--trainer.max_epochs", "10000"]
    command += ["--trainer.default_root_dir", str(root), "--trainer.enable_progress_bar", "false"]
    process = warm_python.start(command, cwd=user, env=ENVIRONMENT, stderr=subprocess.PIPE)
    last = root / "checkpoints" / "last.ckpt"
    wait_for(last)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == int(said), errors
    assert f"stopped at step {saved_step(last)}; " in errors
