"""What a command writes never takes the place of what it reads."""

import shutil

import pytest

from cli_driver import drive
from peft_lightning.export.unverified import UNFINISHED, tell_if_stopped
from peft_lightning.files import require_no_input
from peft_lightning.process.signals import STOP


def test_an_output_is_no_input_and_lies_in_none_and_holds_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to("in")
    for out in ("in", "link", "in/new", "link/inner/new.jsonl", ".", str(tmp_path)):
        with pytest.raises(ValueError, match="which is read: give another place to write to"):
            require_no_input(out, ["owner/model", None, "in"])
    for out in ("other", "inn", "other/in", "in.gguf"):
        require_no_input(out, ["owner/model", None, "", "in"])


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


def commands_with_an_output(user):
    """Return a command line of each command, what it writes, and options that change that."""
    predict = ["predict", "--config", "run/config.yaml", "--data.predict", "rows.jsonl"]
    predict += ["--ckpt_path", "best", "--trainer.limit_predict_batches", "1"]
    one = ["--max_new_tokens", "1"]
    extract = ["extract", "merged", "lora", "--ignore_other_changes"]  # merged is rounded later
    return [
        (["merge", "adapter", "merged", "--verify", "false"], "merged", ["--dtype", "bfloat16"]),
        (["export", "adapter", "a.gguf"], "a.gguf", ["--dtype", "float16"]),
        (["combine", "sum", "adapter=1"], "sum", ["--seed", "1"]),
        (["resize", "adapter", "small", "--rank", "1"], "small", []),
        ([*extract, "--base_model", "base", "--rank", "1"], "lora", []),
        (["generate", "--ckpt_path", "adapter", "--file", "p.txt", *one], "g.jsonl", []),
        ([*predict, "--model.predict_max_new_tokens", "1"], "p.jsonl", []),
        (["card", "adapter"], "adapter/README.md", ["--license", "mit"]),
    ]


def test_an_output_that_is_there_is_replaced_if_it_is_ours_and_that_is_asked_for(user):
    lines = []
    for line, out, other in commands_with_an_output(user):
        own = [*line, "--output", out] if line[0] in ("generate", "predict") else line
        lines += [own, [*own, *other], [*own, *other, "--overwrite"]]
    found = drive(user, lines)
    for line, (status, _, errors) in zip(lines[::3], found[::3], strict=True):
        assert status == 0, (line, errors)
    for line, (status, _, errors) in zip(lines[1::3], found[1::3], strict=True):
        assert status == 2, line
        assert "is there already: --overwrite replaces this" in errors.splitlines()[-1], line
    for line, (status, _, errors) in zip(lines[2::3], found[2::3], strict=True):
        assert status == 0, (line, errors)


def test_an_output_that_is_not_ours_stays_even_with_overwrite(user):
    lines, kept = [], {}
    for line, out, _ in commands_with_an_output(user):
        place = user / ("card" if line[0] == "card" else f"other-{out}")
        own = [word if word != out else place.name for word in line]
        if line[0] in ("generate", "predict"):
            own += ["--output", place.name]
        if line[0] == "card":
            shutil.copytree(user / "adapter", place, dirs_exist_ok=True)
            own, place = ["card", "card"], place / "README.md"
        elif out in ("merged", "sum", "small", "lora"):
            place.mkdir()
            place /= "mine.txt"
        place.write_text('{"prompt": "mine"}\n')
        kept[place] = place.read_bytes()
        lines.append([*own, "--overwrite"])
    for line, (status, _, errors) in zip(lines, drive(user, lines), strict=True):
        assert status == 2, line
        assert "give another place to write to" in errors.splitlines()[-1], line
    assert all(place.read_bytes() == content for place, content in kept.items())


def test_a_file_that_the_user_has_put_into_a_folder_of_ours_stays(user):
    lines = [
        ["merge", "adapter", "noted", "--verify", "false"],
        ["combine", "noted-sum", "adapter=1"],
    ]
    assert [status for status, *_ in drive(user, lines)] == [0, 0]
    for folder in ("noted", "noted-sum"):
        (user / folder / "README.md").write_text("my own words")
    for status, _, errors in drive(user, [[*line, "--overwrite"] for line in lines]):
        assert status == 2
        assert "has other files in it, README.md, which would be removed" in errors
    assert (user / "noted/README.md").read_text() == "my own words"


def test_a_model_whose_verification_was_cut_off_is_replaced_without_a_word(user):
    line = ["merge", "adapter", "cut", "--verify", "false"]
    assert drive(user, [line])[0][0] == 0
    (user / "cut/UNVERIFIED").write_text(UNFINISHED)
    [(status, _, errors)] = drive(user, [line])
    assert status == 0, errors
    assert not (user / "cut/UNVERIFIED").exists()


def test_a_stopped_command_says_what_there_is_of_its_output(tmp_path, monkeypatch):
    monkeypatch.setattr(STOP, "kept", STOP.kept)
    out, mark = tmp_path / "m", tmp_path / "m.UNVERIFIED"
    tell_if_stopped(str(out), mark)
    assert STOP.kept().endswith("m is left: the same command makes it anew")
    out.write_text("model")
    assert STOP.kept().endswith("m is whole")
    mark.write_text(UNFINISHED)
    assert STOP.kept().endswith("m is written and not verified: the same command makes it anew")


def test_an_output_that_cannot_be_written_is_refused_before_any_work(user):
    lines = []
    for line, out, _ in commands_with_an_output(user)[:7]:
        own = [word if word != out else "/proc/x.gguf" for word in line]
        lines += [own + ["--output", "/proc/x.gguf"] * (line[0] in ("generate", "predict"))]
    for line, (status, _, errors) in zip(lines, drive(user, lines), strict=True):
        assert status == 2, line
        said = "/proc/x.gguf cannot be written: No such file or directory, in /proc"
        assert said in errors.splitlines()[-1], line


def test_predictions_go_to_the_file_that_is_named(user):
    line = ["predict", "--config", "run/config.yaml", "--data.predict", "rows.jsonl"]
    line += ["--ckpt_path", "best", "--output", "out/mine.jsonl"]
    line += ["--model.predict_max_new_tokens", "1", "--trainer.limit_predict_batches", "1"]
    [(status, _, errors)] = drive(user, [line])
    assert status == 0, errors
    assert "out/mine.jsonl" in errors
    assert (user / "out/mine.jsonl").read_text().count("\n") > 1
