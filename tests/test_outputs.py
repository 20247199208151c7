"""What a command writes never takes the place of what it reads."""

import shutil

import pytest

from cli_driver import drive
from peft_lightning.files import require_no_input


def test_an_output_is_no_input_and_lies_in_none_and_holds_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to("in")
    for out in ("in", "link", "in/new", "link/inner/new.jsonl", ".", str(tmp_path)):
        with pytest.raises(ValueError, match="which is read: give another place to write to"):
            require_no_input(out, ["owner/model", None, "in"])
    for out in ("other", "inn", "other/in", "in.gguf"):
        require_no_input(out, ["owner/model", None, "in"])


@pytest.fixture(scope="module")
def user(tmp_path_factory, base, rows):
    """A folder with a base, rows, prompts and a checkpoint."""
    folder = tmp_path_factory.mktemp("outputs")
    shutil.copytree(base, folder / "base")
    shutil.copy(rows, folder / "rows.jsonl")
    (folder / "p.txt").write_text("hello\n")
    options = ["--trainer.max_steps", "1", "--trainer.accelerator", "cpu"]
    options += ["--trainer.default_root_dir", "run", "--data.cache_dir", "cache"]
    fit = ["fit", "--model.base_model", "base", "--data.train", "rows.jsonl", *options]
    [(status, _, errors)] = drive(folder, [fit])
    assert status == 0, errors
    shutil.copytree(folder / "run/checkpoints/best.ckpt", folder / "adapter")
    return folder


def test_no_command_writes_over_what_it_reads(user):
    predict = ["predict", "--config", "run/config.yaml", "--data.predict", "rows.jsonl"]
    lines = [
        ["generate", "--ckpt_path", "adapter", "--file", "p.txt", "--output", "p.txt"],
        ["generate", "--ckpt_path", "adapter", "--prompt", "a", "--output", "adapter/a.jsonl"],
        [*predict, "--ckpt_path", "best", "--output", "rows.jsonl"],
        ["merge", "adapter", "base"],
        ["merge", "adapter", "adapter"],
        ["merge", "adapter", "."],
        ["resize", "adapter", "adapter", "--rank", "1"],
        ["combine", "adapter/sum", "adapter=1", "run/checkpoints/best.ckpt=1"],
        ["extract", "base", "base", "--base_model", "base", "--rank", "1"],
        ["export", "adapter", "adapter/a.gguf"],
    ]
    before = {p: p.read_bytes() for p in user.rglob("*") if p.is_file() and "cache" not in p.parts}
    for line, (status, _, errors) in zip(lines, drive(user, lines), strict=True):
        assert status == 2, line
        assert "which is read: give another place to write to" in errors.splitlines()[-1], line
    assert all(path.read_bytes() == content for path, content in before.items())


def test_predictions_go_to_the_file_that_is_named(user):
    line = ["predict", "--config", "run/config.yaml", "--data.predict", "rows.jsonl"]
    line += ["--ckpt_path", "best", "--output", "out/mine.jsonl"]
    line += ["--model.predict_max_new_tokens", "1", "--trainer.limit_predict_batches", "1"]
    [(status, _, errors)] = drive(user, [line])
    assert status == 0, errors
    assert "out/mine.jsonl" in errors
    assert (user / "out/mine.jsonl").read_text().count("\n") > 1
