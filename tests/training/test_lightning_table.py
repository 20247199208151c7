"""Everything that Lightning offers is tried, and docs/lightning.md says what came out.

``python scripts/write_lightning_table.py`` writes the table of the page from the cases.
"""

import inspect
import os
import re
import sys
import typing
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning import fabric
from lightning.pytorch import accelerators, callbacks, cli, loggers, plugins, profilers, strategies
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.core.hooks import CheckpointHooks, DataHooks, ModelHooks
from lightning.pytorch.plugins import environments
from lightning.pytorch.trainer.connectors.accelerator_connector import _PRECISION_INPUT
from lightning.pytorch.tuner import Tuner
from safetensors.torch import load_file

from cli_driver import ROOT, drive
from lightning_case import EXACT, HAS, REFUSED, Case, Elsewhere, Script, in_yaml, made
from lightning_cases import SECTIONS
from lightning_scripts import StepHooks, assert_equal
from peft_lightning import LoRA, Trainer
from test_overrides import SaveAt
from tiny_run import fit, write_rows

sys.path.insert(0, str(ROOT / "scripts"))
import write_lightning_table

ROWS = {f"{title}/{name}": row for title, rows in SECTIONS.items() for name, row in rows.items()}
CASES = {name: row for name, row in ROWS.items() if isinstance(row, Case)}
SCRIPTS = {name: row for name, row in ROWS.items() if isinstance(row, Script)}
IN_YAML = {name: case for name, case in CASES.items() if case.yaml}
ADAPTER = {"r": 2, "lora_dropout": 0.1}
BASIC = {
    "accelerator": "cpu",
    "max_epochs": 2,
    "logger": False,
    "enable_progress_bar": False,
    "gradient_clip_val": None,
}


@pytest.fixture(scope="module")
def six_rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("six") / "rows.jsonl", 6)


@pytest.fixture(autouse=True)
def settings_of_torch(monkeypatch):
    """Take back what a Trainer's options change for the whole process."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


def options_of(case):
    """Return a case's options, over those that all cases have."""
    says_precision = any("recision" in repr(p) for p in case.options.get("plugins", []))
    return {**BASIC, **({} if says_precision else {"precision": "32-true"}), **case.options}


def key(case):
    """Return what makes the run of a case: several cases can be the same one."""
    return repr((options_of(case), case.module, case.save_at))


KEYS = list(dict.fromkeys(map(key, CASES.values())))


class Runs:
    """The runs of cases from Python, each made once, in a folder of its own."""

    def __init__(self, base, rows, root):
        self.base, self.rows, self.root = base, rows, root
        self.finished = {}

    def folder(self, name):
        folder = self.root / str(KEYS.index(key(CASES[name])))
        folder.mkdir(exist_ok=True)
        os.chdir(folder)
        return folder

    def whole(self, name):
        case, folder = CASES[name], self.folder(name)
        saves = [SaveAt(case.save_at, folder / "at.ckpt")] if case.save_at else []
        return self.once(name, "whole", saves)

    def resumed(self, name):
        return self.once(name, "resumed", ckpt_path=str(self.folder(name) / "at.ckpt"))

    def once(self, name, root, more=(), **options):
        which = (key(CASES[name]), root)
        if which not in self.finished:
            self.finished[which] = self.run(name, root, more, **options)
        return self.finished[which]

    def run(self, name, root, more=(), **options):
        case, folder = CASES[name], self.folder(name)
        given = made(options_of(case))
        return fit(
            self.base,
            self.rows,
            folder / root,
            adapter=LoRA(**ADAPTER),
            data={"batch_size": 2, "val": str(self.rows)},
            module_class=case.module,
            trainer_class=Trainer,
            **{**given, "callbacks": [*given.get("callbacks", []), *more]},
            **options,
        )


@pytest.fixture(scope="module")
def runs(base, six_rows, tmp_path_factory):
    """All runs of this file from Python; they are made in folders that they are started in."""
    before = Path.cwd()
    yield Runs(base, six_rows, tmp_path_factory.mktemp("cases"))
    os.chdir(before)


def skip_if_it_is_there(case):
    if case.needs and HAS[case.needs]():
        pytest.skip(f"this machine has {case.needs}")


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.verdict != REFUSED])
def test_what_works_does_what_is_asked_and_ends_in_the_same_bits_after_a_resume(name, runs):
    case, whole = CASES[name], runs.whole(name)
    assert whole.global_step == case.steps
    assert case.did(whole)
    if not case.save_at:
        assert case.verdict != EXACT
        return
    resumed = runs.resumed(name)
    one, other = (run.lightning_module.state_dict() for run in (whole, resumed))
    same = one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())
    same = same and whole.global_step == resumed.global_step
    assert same is (case.verdict == EXACT)


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.verdict == REFUSED])
def test_what_does_not_work_is_refused_with_a_reason(name, runs):
    case = CASES[name]
    skip_if_it_is_there(case)
    with pytest.raises(Exception, match=case.error) as refusal:
        runs.run(name, "whole")
    assert not isinstance(refusal.value, (AttributeError, TypeError, AssertionError))


@pytest.fixture(scope="module")
def from_yaml(base, six_rows, tmp_path_factory):
    """What the command line makes of each case: folder, status, output and errors."""
    root = tmp_path_factory.mktemp("yaml")
    folders, lines = {}, []
    for i, case in enumerate({key(case): case for case in IN_YAML.values()}.values()):
        trainer = {"default_root_dir": f"run{i}", **options_of(case)}
        config = {
            "model": {
                "base_model": str(base),
                "learning_rate": 1e-2,
                "adapter": {"class_path": "LoRA", "init_args": ADAPTER},
            },
            "data": {
                "train": str(six_rows),
                "val": str(six_rows),
                "batch_size": 2,
                "cache_dir": "cache",
            },
            "trainer": in_yaml(trainer),
        }
        (root / f"{i}.yaml").write_text(yaml.safe_dump(config))
        folders[key(case)] = root / f"run{i}"
        lines.append(["fit", "--config", f"{i}.yaml"])
    done = dict(zip(folders, drive(root, lines), strict=True))
    return {name: (folders[key(case)], *done[key(case)]) for name, case in IN_YAML.items()}


@pytest.mark.parametrize("name", IN_YAML)
def test_yaml_gives_what_python_gives(name, runs, from_yaml):
    case, (folder, status, _, error) = IN_YAML[name], from_yaml[name]
    skip_if_it_is_there(case)
    if case.verdict == REFUSED:
        assert status == 2, error
        (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
        assert re.search(case.error, line), line
        assert len(line) < 300
        return
    assert status == 0, error
    weights = folder / "checkpoints" / "last.ckpt" / "adapter_model.safetensors"
    assert weights.is_file() is case.equal
    if case.equal:
        assert_equal(load_file(weights), runs.whole(name).lightning_module.state_dict())


@pytest.mark.parametrize("name", SCRIPTS)
def test_these_lines_of_python_do_what_they_say(name, base, six_rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    SCRIPTS[name].run(base, six_rows, tmp_path / "run")


def test_what_lightning_shows_for_the_hooks_around_a_step_trains_the_same_weights(runs):
    (name,) = [name for name, case in CASES.items() if case.module is StepHooks]
    plain = runs.whole("Trainer/accelerator").lightning_module.state_dict()
    assert_equal(runs.whole(name).lightning_module.state_dict(), plain)


@pytest.mark.parametrize("name", [n for n, row in ROWS.items() if isinstance(row, Elsewhere)])
def test_what_is_tested_elsewhere_is_there(name):
    file = ROOT / "tests" / ROWS[name].file
    assert f"def {ROWS[name].test}(" in file.read_text()


def functions(kind):
    public = [name for name in vars(kind) if not name.startswith("_")]
    return {name for name in public if callable(getattr(kind, name))}


def subclasses(module, *kinds):
    return {
        n
        for n, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, kinds) and not n.startswith("_")
    }


OFFERED: dict[str, Callable[[], set[str]]] = {
    "Trainer": lambda: set(inspect.signature(pl.Trainer).parameters),
    "Methods of the Trainer": lambda: functions(pl.Trainer),
    "Callbacks": lambda: set(callbacks.__all__),
    "Loggers": lambda: set(loggers.__all__),
    "Profilers": lambda: {*profilers.__all__, "simple", "advanced", "pytorch", "xla"},
    "Precision": lambda: {
        str(value) for part in typing.get_args(_PRECISION_INPUT) for value in typing.get_args(part)
    },
    "Plugins": lambda: {
        *plugins.__all__,
        *subclasses(environments, environments.ClusterEnvironment),
    },
    "Strategies": lambda: {
        *strategies.__all__,
        *strategies.StrategyRegistry.available_strategies(),
        "auto",
    },
    "Accelerators": lambda: {
        *(n for n in accelerators.__all__ if n.endswith("Accelerator") and n != "Accelerator"),
        *AcceleratorRegistry.available_accelerators(),
        "gpu",
    },
    "Tuner": lambda: functions(Tuner),
    "LightningModule": lambda: {
        name
        for kind in (ModelHooks, DataHooks, CheckpointHooks, pl.LightningModule)
        for name in functions(kind)
    },
    "LightningCLI": lambda: (
        {
            n
            for n in vars(cli)
            if (n.startswith("Lightning") and "Parser" in n) or n == "LightningCLI"
        }
        | {"SaveConfigCallback"}
    ),
    "Fabric": lambda: {fabric.Fabric.__name__},
}


@pytest.mark.parametrize("section", SECTIONS)
def test_the_table_names_all_that_lightning_has(section):
    named = {
        part.strip() for name in SECTIONS[section] for part in name.partition(":")[0].split(",")
    }
    assert named == OFFERED[section]()


def test_the_page_is_what_the_cases_say():
    assert write_lightning_table.page() == write_lightning_table.PAGE.read_text("utf-8")
