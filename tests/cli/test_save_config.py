"""A run's config.yaml describes the run: new ones are made from it, and no resume is in it."""

import json

import pytest
import yaml

from cli_driver import drive

SMALL = "data: {train: rows.jsonl, cache_dir: cache}\ntrainer: {accelerator: cpu, max_epochs: 1}\n"
NONE = "ckpt_path: none\n"
R, NEW = "runs/run/config.yaml", "--trainer.default_root_dir"


@pytest.fixture(scope="module")
def ran(tmp_path_factory, base, rows):
    """The folder of a user, and (status, output, errors) of each command line, in order."""
    user = tmp_path_factory.mktemp("user")
    (user / "rows.jsonl").write_text(rows.read_text())
    config = f"model: {{base_model: {base}, adapter: {{class_path: LoRA, init_args: {{r: 2}}}}}}\n"
    (user / "run.yaml").write_text(config + SMALL)
    last = "ckpt_path: runs/run/checkpoints/last.ckpt\n"
    (user / "from.yaml").write_text(config + SMALL.replace("max_epochs: 1", "max_epochs: 3") + last)
    best = "runs/run/checkpoints/best.ckpt"
    lines = {
        "first": ["fit", "--config", "run.yaml"],
        "resumed": [
            *["fit", "--config", R, "--ckpt_path", "last", "--trainer.max_epochs", "2"],
            *["--data.allow_changed_data", "true"],
        ],
        "new": ["fit", "--config", R, NEW, "new", "--model.learning_rate", "1e-4"],
        "from a config": ["fit", "--config", "from.yaml", NEW, "on"],
        "none": ["fit", "--config", "from.yaml", NEW, "none", "--ckpt_path", "none"],
        "none in YAML": ["fit", "--config", "none.yaml", NEW, "yaml"],
        "untrained": ["validate", "--config", R, "--ckpt_path", "none"],
        "unsaid": ["validate", "--config", R],
        "predict": [
            *["predict", "--config", "from.yaml", "--ckpt_path", "none", "--adapter", f"a={best}"],
            *["--data.predict", "rows.jsonl", "--trainer.limit_predict_batches", "1"],
            *["--model.predict_max_new_tokens", "2", NEW, "predicted"],
        ],
        "no such": ["fit", "--config", "run.yaml", "--ckpt_path", "lost"],
        "another adapter": [
            *["fit", "--config", "run.yaml", "--ckpt_path", best, "--model.adapter.r", "3"],
            *[NEW, "another"],
        ],
    }
    (user / "none.yaml").write_text((user / "from.yaml").read_text().replace(last, NONE))
    return user, dict(zip(lines, drive(user, list(lines.values())), strict=True))


def saved(user, run):
    return yaml.safe_load((user / run / "config.yaml").read_text())


def name_of(user, run):
    return json.loads((user / run / "run.json").read_text())["run"]


def steps(user, run):
    return json.loads((user / run / "summary.json").read_text())["steps"]


def test_the_saved_config_holds_no_checkpoint_and_no_leave_for_other_data(ran):
    user, results = ran
    for name in ("first", "resumed"):
        assert results[name][0] == 0, results[name][2]
    assert steps(user, "runs/run") == 6  # 23 rows in batches of 8, two epochs
    config = saved(user, "runs/run")
    assert "ckpt_path" not in config
    assert config["data"]["allow_changed_data"] is False
    assert config["trainer"]["max_epochs"] == 2


def test_the_config_of_a_run_that_was_resumed_begins_a_new_one(ran):
    user, results = ran
    assert results["new"][0] == 0, results["new"][2]
    assert name_of(user, "new") != name_of(user, "runs/run")
    assert steps(user, "new") == 6
    assert "Restor" not in results["new"][2]
    assert saved(user, "new")["model"]["learning_rate"] == 1e-4


def test_a_checkpoint_in_a_config_is_taken_unless_the_command_line_says_none(ran):
    user, results = ran
    for name in ("from a config", "none", "none in YAML"):
        assert results[name][0] == 0, results[name][2]
    assert name_of(user, "on") == name_of(user, "runs/run")
    for run in ("none", "yaml"):
        assert name_of(user, run) != name_of(user, "runs/run")
        assert steps(user, run) == 9
    assert "ckpt_path" not in saved(user, "on")


def test_none_is_an_untrained_adapter_that_is_meant(ran):
    _, results = ran
    assert results["untrained"][0] == results["unsaid"][0] == 0
    assert "untrained" not in results["untrained"][2]
    assert "an untrained adapter, as with --ckpt_path none" in results["unsaid"][2]
    assert results["predict"][0] == 0, results["predict"][2]


@pytest.mark.parametrize(
    ("name", "words"),
    [("no such", "none starts from the beginning"), ("another adapter", "--ckpt_path none, in an")],
)
def test_an_error_about_a_checkpoint_names_none(ran, name, words):
    _, results = ran
    assert results[name][0] == 2
    assert words in results[name][2]
