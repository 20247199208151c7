"""``fit`` without a config: what it takes by itself, what it says of that, and what it cannot."""

import json
import runpy
import shutil
from pathlib import Path

import pytest
import yaml

from cli_driver import ENVIRONMENT, drive
from peft_lightning import CausalLMModule
from peft_lightning.cli.config_index import read_arguments
from peft_lightning.cli.fit_defaults import default_base_model, quick_start_model

TRAIN = ["--data.train", "rows.jsonl"]
MODEL = ["--model.base_model", "base"]
ROOT = "--trainer.default_root_dir"
LINES = {
    "data alone": ["fit", *TRAIN],
    "saved config": [
        *["fit", "--config", "runs/default/config.yaml", ROOT, "again"],
        *["--trainer.limit_train_batches", "1"],
    ],
    "steps": ["fit", *MODEL, *TRAIN, ROOT, "steps", "--trainer.max_steps", "2"],
    "not clipped": [
        *["fit", *MODEL, *TRAIN, ROOT, "free", "--trainer.max_epochs", "1"],
        *["--trainer.gradient_clip_val", "null"],
    ],
    "time": [
        *["fit", *MODEL, *TRAIN, ROOT, "time", "--trainer.max_time", "00:00:00:01"],
        *["--model.lr_schedule", "Constant", "--model.lr_schedule.warmup", "0"],
    ],
    "printed": ["fit", *TRAIN, "--print_config"],
    "printed, nothing given": ["fit", "--print_config"],
}
ERRORS = {
    "negative norm": (
        [*MODEL, *TRAIN, "--trainer.gradient_clip_val=-1"],
        "trainer.gradient_clip_val must be the largest norm of the gradient, 0 or more, got -1",
    ),
    "at least so many steps": (
        [*MODEL, *TRAIN, "--trainer.min_steps", "9"],
        "trainer.min_steps is 9, and nothing says when training ends: give trainer.max_steps or",
    ),
    "time and a cosine": (
        [*MODEL, *TRAIN, ROOT, "cosine", "--trainer.max_time", "00:01:00:00"],
        "Cosine(warmup=0.03, final=0.0) needs the number of steps, and nothing limits it: give",
    ),
    "a slip of the pen": ([*TRAIN, "--model.bas_model", "base"], "did you mean 'base_model'"),
    "no data": (MODEL, "data.train is required for fit"),
    "neither": (["--seed_everything", "3"], "fit needs two options: --model.base_model NAME"),
    "no option at all": ([], "fit needs two options: --model.base_model NAME"),
}


def folder_of_user(folder, base, rows):
    shutil.copytree(base, folder / "base")
    (folder / "rows.jsonl").write_text(rows.read_text())
    return folder


@pytest.fixture(scope="module")
def caches():
    """Return a function that gives the commands another folder of caches, and no kernels there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENVIRONMENT, "PEFT_LIGHTNING_KERNELS", "off")
        yield lambda folder: patch.setitem(ENVIRONMENT, "XDG_CACHE_HOME", str(folder))


@pytest.fixture(scope="module")
def ran(tmp_path_factory, base, rows, caches):
    """The folder of a user who has the quick start's model, and what each command line gave."""
    user = folder_of_user(tmp_path_factory.mktemp("user"), base, rows)
    caches(user / "caches")
    shutil.copytree(base, user / "caches/peft_lightning/models/SmolLM2-135M-Instruct")
    lines = LINES | {name: ["fit", *options] for name, (options, _) in ERRORS.items()}
    return user, dict(zip(lines, drive(user, list(lines.values())), strict=True))


def config(user, run):
    return yaml.safe_load((user / run / "config.yaml").read_text())


def steps(user, run):
    return json.loads((user / run / "summary.json").read_text())["steps"]


def test_data_alone_trains_three_epochs_of_the_quick_starts_model_with_clipped_gradients(ran):
    user, results = ran
    status, _, errors = results["data alone"]
    assert status == 0, errors
    assert steps(user, "runs/default") == 3 * 3  # 23 rows in batches of 8
    saved = config(user, "runs/default")
    model = str(user / "caches/peft_lightning/models/SmolLM2-135M-Instruct")
    assert saved["model"]["base_model"] == model
    assert saved["trainer"]["max_epochs"] == 3
    assert saved["trainer"]["gradient_clip_val"] == 1.0
    for line in (
        f"no --model.base_model: the quick start's model is used, {model}",
        "defaults: 3 epochs (--trainer.max_epochs), gradient norm clipped at 1.0 "
        "(--trainer.gradient_clip_val)",
    ):
        assert errors.splitlines().count(line) == 1
    assert errors.count("no data.val: 1 of 24 rows of rows.jsonl are held out") == 1
    assert (user / "runs/default/checkpoints/best.ckpt").is_dir()


def test_what_is_given_is_no_default_and_is_not_said(ran):
    user, results = ran
    for name in ("saved config", "steps", "not clipped", "time"):
        assert results[name][0] == 0, results[name][2]
        assert "quick start" not in results[name][2]
    assert "defaults: " not in results["saved config"][2]
    assert steps(user, "again") == 3
    assert (
        "defaults: gradient norm clipped at 1.0 (--trainer.gradient_clip_val)\n"
        in (results["steps"][2])
    )
    assert steps(user, "steps") == 2
    assert "defaults: " not in results["not clipped"][2]
    assert config(user, "free")["trainer"]["gradient_clip_val"] is None
    assert config(user, "time")["trainer"]["max_epochs"] is None
    assert steps(user, "time") > 0


def test_the_printed_config_is_that_of_the_run(ran):
    user, results = ran
    status, output, errors = results["printed"]
    assert status == 0, errors
    printed, saved = yaml.safe_load(output), config(user, "runs/default")
    assert printed["model"] == saved["model"]
    del printed["trainer"]["default_root_dir"], saved["trainer"]["default_root_dir"]
    assert printed["trainer"] == saved["trainer"]
    assert "quick start" not in errors
    assert yaml.safe_load(results["printed, nothing given"][1])["model"]["base_model"] is None


@pytest.mark.parametrize("name", ERRORS)
def test_what_is_missing_or_wrong_is_one_line(ran, name):
    _, results = ran
    status, _, errors = results[name]
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert status == 2
    assert ERRORS[name][1] in line
    assert errors.rstrip().endswith(line)


def test_without_the_quick_starts_model_the_error_names_what_gets_it(
    tmp_path, base, rows, caches, ran
):
    user = folder_of_user(tmp_path, base, rows)
    caches(user / "none")
    status, _, errors = drive(user, [["fit", *TRAIN]])[0]
    folder = user / "none/peft_lightning/models/SmolLM2-135M-Instruct"
    assert status == 2
    assert errors.strip() == (
        f"error: model.base_model is required: the quick start's model is not at {folder}; python "
        "scripts/get_smollm2.py gets it, or give another as --model.base_model: a hub id, a "
        "model's folder or a GGUF file"
    )


def test_a_model_that_is_there_in_another_way_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    quick_start_model().mkdir(parents=True)
    (quick_start_model() / "config.json").write_text("{}")

    class Own(CausalLMModule):
        def __init__(self, base_model: str = "mine", **kwargs) -> None:
            super().__init__(base_model, **kwargs)

    (tmp_path / "a.yaml").write_text("model: {class_path: X, init_args: {base_model: x}}\n")

    def found(*more, cls=CausalLMModule):
        return default_base_model(read_arguments([*TRAIN, *more]), cls)

    assert found() == str(quick_start_model())
    assert found(*MODEL) is None
    assert found("--model.init_from", "adapter") is None
    assert found("--config", str(tmp_path / "a.yaml")) is None
    assert found(cls=Own) is None


def test_the_quick_starts_model_is_where_its_script_writes_it(tmp_path, monkeypatch):
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "get_smollm2.py"))
    for folder in (None, str(tmp_path)):
        if folder is None:
            monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        else:
            monkeypatch.setenv("XDG_CACHE_HOME", folder)
        assert quick_start_model() == script["default_folder"]()
