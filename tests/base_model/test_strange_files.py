"""Files of a base that hold anything else: one line, at once, whichever command reads them."""

import json
import shutil
import struct

import pytest

from cli_driver import drive

DEEP = "[" * 100_000
GGUF = {  # what follows the magic and the version: counts of tensors and of keys, and a key
    "counts": struct.pack("<QQ", 2**60, 2**60),
    "array": struct.pack("<QQQ4sIIQ", 0, 1, 4, b"abcd", 9, 4, 2**50),
    "text": struct.pack("<QQQ4s", 0, 1, 2**50, b"abcd"),
}
JSON = [
    ("config.json", DEEP),
    ("config.json", "{}"),
    ("config.json", {"hidden_size": 1e30}),
    ("config.json", {"hidden_size": "x"}),
    ("config.json", {"num_hidden_layers": 10**8}),
    ("config.json", {"vocab_size": -1}),
    ("config.json", {"num_attention_heads": 0}),
    ("tokenizer.json", "{}"),
    ("tokenizer.json", DEEP),
    ("generation_config.json", DEEP),
    ("tokenizer_config.json", DEEP),
    ("tokenizer_config.json", "[]"),
]


@pytest.fixture
def user(tmp_path, base, rows):
    shutil.copytree(base, tmp_path / "base")
    shutil.copy(rows, tmp_path / "rows.jsonl")
    return tmp_path


def commands(name):
    fit = ["fit", "--model.base_model", name, "--data.train", "rows.jsonl", "--trainer.max_steps"]
    fit += ["1", "--trainer.accelerator", "cpu", "--data.cache_dir", "cache", "--overwrite"]
    return [["generate", "--base_model", name, "--prompt", "a", "--max_new_tokens", "1"], fit]


def test_json_of_a_base_that_is_something_else_is_one_line(user):
    for i, (file, content) in enumerate(JSON):
        strange = shutil.copytree(user / "base", user / f"strange{i}")
        if isinstance(content, dict):
            content = json.dumps({**json.loads((strange / file).read_text()), **content})
        (strange / file).write_text(content)
    lines = [line for i in range(len(JSON)) for line in commands(f"strange{i}")]
    for i, (status, _, errors) in enumerate(drive(user, lines)):
        assert status in (0, 2), (JSON[i // 2], errors)  # 0 where the file is not needed
        assert "Traceback" not in errors, JSON[i // 2]


def test_the_head_of_a_gguf_file_that_asks_for_more_than_there_is_is_one_line(user):
    for name, rest in GGUF.items():
        (user / f"{name}.gguf").write_bytes(b"GGUF" + struct.pack("<I", 3) + rest)
    lines = [line for name in GGUF for line in commands(f"{name}.gguf")]
    for line, (status, _, errors) in zip(lines, drive(user, lines), strict=True):
        assert status == 2, (line, errors)
        assert ".gguf" in errors.splitlines()[-1], line
