"""Every YAML in configs/ fits two steps on a tiny model, by the real command line."""

import json
from pathlib import Path

import pytest

from cli_driver import drive

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, base, rows):
    """The folder, and (status, output, errors) of ``fit`` with each config."""
    user = tmp_path_factory.mktemp("configs")
    chats = [
        {"messages": [{"role": "user", "content": r["prompt"]},
                      {"role": "assistant", "content": r["completion"]}]}
        for r in map(json.loads, rows.read_text().splitlines())
    ]  # fmt: skip
    (user / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    lines = []
    for config in CONFIGS:
        data = user / "chats.jsonl" if "format: messages" in config.read_text() else rows
        lines.append(
            [
                *["fit", "--config", str(config), "--model.base_model", str(base)],
                *["--data.train", str(data), "--data.val", str(data)],
                *["--data.cache_dir", "cache", "--trainer.default_root_dir", config.stem],
                *["--trainer.accelerator", "cpu", "--trainer.max_steps", "2"],
                *["--trainer.enable_progress_bar", "false"],
            ]
        )
    return user, dict(zip(CONFIGS, drive(user, lines), strict=True))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_config_fits_two_steps(runs, config):
    user, results = runs
    assert results[config][0] == 0, results[config][2]
    assert json.loads((user / config.stem / "summary.json").read_text())["steps"] in (1, 2)
    assert (user / config.stem / "checkpoints" / "best.ckpt").is_dir()


def test_the_five_configs_are_there():
    names = {"quickstart", "lora", "prompt_tuning", "full", "course_lora"}
    assert names <= {config.stem for config in CONFIGS}
