"""Files that are broken, changed or absurd, through the real command line: an error in one line."""

import json
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cli_driver import ENVIRONMENT, drive
from test_cli import DATA, MODEL

TRAINER = "max_steps: 2, accelerator: cpu, enable_progress_bar: false, logger: false"
ROW = {"prompt": "a", "completion": "b"}

# name: (the file's content, what the error says after the file's name)
FILES = {
    "invalid_utf8.jsonl": (
        b'{"prompt": "\xff", "completion": "b"}\n',
        r": not UTF-8; it looks like windows-1252 .*set data.encoding",
    ),
    "nul.jsonl": (
        b'{"prompt": "a\0", "completion": "b"}\n',
        r":1: NUL bytes: the first is byte 14",
    ),
    "nested.jsonl": (b"[" * 100_000 + b"\n", r": invalid JSON, nested too deeply"),
    "nested.json": (b"[" * 100_000, r": invalid JSON, nested too deeply"),
    "empty.jsonl": (b"", r": no rows"),
    "blank.jsonl": (b"\n\n  \n", r": no rows"),
    "empty.json": (b"[]", r": no rows"),
    "header.csv": (b"prompt,completion\n", r": no rows"),
    "torn.jsonl": (b'{"prompt": "a", "completion": "b"}\n{"prompt": "a', r":2: invalid JSON"),
    "nan.jsonl": (b'{"prompt": NaN, "completion": "b"}\n', r":1: .*prompt.*not text: it is nan"),
    "torn.parquet": (b"PAR1\0\0\0\0", r": not a Parquet file"),
}


@pytest.fixture(scope="module")
def user(tmp_path_factory, base, rows):
    """A folder with a config, its own base, rows, a run of two steps, and the broken files."""
    folder = tmp_path_factory.mktemp("bad")
    shutil.copytree(base, folder / "base")
    model = MODEL.replace("BASE", "base") + ", adapter: {class_path: LoRA, init_args: {r: 2}}}"
    (folder / "run.yaml").write_text(model + DATA.replace("TRAINER", TRAINER))
    shutil.copy(rows, folder / "rows.jsonl")
    for name, (content, _) in FILES.items():
        (folder / name).write_bytes(content)
    for link in ("gone.jsonl", "gone", "folder/gone.jsonl"):
        (folder / link).parent.mkdir(exist_ok=True)
        (folder / link).symlink_to("nowhere")
    root = ["--trainer.default_root_dir", "runs/good"]
    [(status, _, errors)] = drive(folder, [["fit", "--config", "run.yaml", *root]])
    assert status == 0, errors
    return folder


def errors_of(folder, lines):
    """Return the error's line of each command line; all of them must fail, with nothing more."""
    found = []
    for line, (status, _, errors) in zip(lines, drive(folder, lines), strict=True):
        said = [text for text in errors.splitlines() if text.startswith("error:")]
        assert (status, len(said)) == (2, 1), (line, errors)
        assert errors.strip().endswith(said[0])
        found.append(said[0])
    return found


def test_a_broken_data_file_is_named_with_its_line_and_what_is_wrong(user):
    import re

    fits = [["fit", "--config", "run.yaml", "--data.train", name] for name in FILES]
    prompts = [["generate", "--base_model", "base", "--file", name] for name in FILES]
    errors = errors_of(user, fits + prompts)
    for name, error in zip([*FILES, *FILES], errors, strict=True):
        assert re.search(re.escape(name) + FILES[name][1], error), error
        assert len(error) < 400


def test_a_link_to_nowhere_is_named(user):
    config = ["--config", "run.yaml"]
    lines = [
        ["fit", *config, "--data.train", "gone.jsonl"],
        ["fit", *config, "--data.train", "folder"],
        ["fit", *config, "--model.base_model", "./gone"],
        ["fit", *config, "--ckpt_path", "gone"],
        ["fit", *config, "--trainer.default_root_dir", "gone"],
        ["generate", "--ckpt_path", "gone", "--prompt", "a"],
        ["merge", "gone", "out"],
    ]
    assert all("gone" in error for error in errors_of(user, lines))


def test_conversations_without_a_chat_template_are_an_error_that_says_what_to_give(user):
    tokenizer = AutoTokenizer.from_pretrained(user / "base")
    shutil.copytree(user / "base", user / "plain")
    (user / "plain" / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(user / "plain")
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (user / "chat.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    command = ["fit", "--config", "run.yaml", "--model.base_model", "plain", "--data.train"]
    [error] = errors_of(user, [[*command, "chat.jsonl"]])
    assert "the tokenizer has no chat template" in error
    assert "give chat_template the path of a Jinja file" in error
    other = ["--trainer.default_root_dir", "runs/plain"]
    assert drive(user, [[*command, "rows.jsonl", *other]])[0][0] == 0


@pytest.mark.parametrize("change", ["a row is changed", "the last rows are gone"])
def test_data_that_changed_since_the_checkpoint_is_refused_or_accepted_if_asked(
    user, tmp_path, change
):
    shutil.copytree(user / "runs/good", tmp_path / "run")
    lines = (user / "rows.jsonl").read_text().splitlines(True)
    lines = [lines[1], *lines[1:]] if change == "a row is changed" else lines[:-3]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    command = ["fit", "--config", "run.yaml", "--ckpt_path", "last", "--trainer.max_steps", "3"]
    command += ["--trainer.default_root_dir", str(tmp_path / "run")]
    command += ["--data.train", str(tmp_path / "rows.jsonl")]
    [error] = errors_of(user, [command])
    assert "the checkpoint was made with other data: hash" in error
    assert "set data.allow_changed_data to true" in error
    [(status, _, errors)] = drive(user, [[*command, "--data.allow_changed_data", "true"]])
    # within an epoch the number of batches may not change either
    assert status == 0, errors


def test_a_base_replaced_under_its_name_is_refused_everywhere(user, tmp_path):
    own = shutil.copytree(user, tmp_path / "user", symlinks=True)
    model = AutoModelForCausalLM.from_pretrained(own / "base")
    with torch.no_grad():
        model.model.norm.weight += 0.5
    model.save_pretrained(own / "base")
    last = "runs/good/checkpoints/last.ckpt"
    ask = ["generate", "--ckpt_path", last, "--prompt", "a", "--max_new_tokens", "1"]
    run = ["--config", "run.yaml", "--trainer.default_root_dir", "runs/good", "--ckpt_path", "last"]
    lines = [
        ["fit", *run, "--trainer.max_steps", "3"],
        ["validate", *run],
        ask,
        ["merge", last, "out"],
        ["export", last, "out.gguf"],
    ]
    assert all("another base model" in error for error in errors_of(own, lines))
    assert drive(own, [[*ask, "--allow_base_mismatch"]])[0][0] == 0


def test_a_line_of_200_mb_is_an_error_in_bounded_memory(user):
    with (user / "long.jsonl").open("wb") as file:
        file.write(b'{"completion": "b", "prompt": "')
        for _ in range(200):
            file.write(b"ab " * (2**20 // 3))
        file.write(b'"}\n')
    limit = 8 * 2**30

    def bound():
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    options = ["--config", "run.yaml", "--data.train", "long.jsonl"]
    done = subprocess.run(
        [sys.executable, "-m", "peft_lightning", "fit", *options],
        cwd=user,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=bound,
    )
    (user / "long.jsonl").unlink()
    assert done.returncode == 2, done.stderr
    assert "long.jsonl:1: a line that is too long: 209,7" in done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("starting ")]
    assert len(lines) < 5  # a busy machine adds lines of progress
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert children.ru_maxrss < 3 * 2**20  # KiB
