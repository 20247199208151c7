"""The storm over one operation: what is disturbed and started again ends as if nothing had been."""

import os
import re
import subprocess
import sys
from pathlib import Path

import storm

ROOT = Path(__file__).parents[2]


def run(*options):
    """Run the storm in a process of its own; return its status and output."""
    own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, ROOT / "scripts/storm.py", *options]
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=500)
    return done.returncode, done.stdout + done.stderr


def test_a_storm_over_generate_changes_no_byte_and_shows_what_it_tried():
    status, said = run("--minutes", "0.3", "--seed", "5", "--only", "generate")
    assert status == 0, said
    tries, held, violations = map(int, re.findall(r"(\d+) (?:tries|held|violations)", said)[-3:])
    assert tries == held >= 1
    assert violations == 0
    assert re.search(r"^generate +\d+/\d+", said, re.MULTILINE)


def test_a_try_is_the_same_one_again():
    kinds = ["KILL", "TERM", "two"]
    first = [storm.chosen(seed, storm.OPERATIONS, kinds) for seed in range(50)]
    assert first == [storm.chosen(seed, storm.OPERATIONS, kinds) for seed in range(50)]
    assert len(set(first)) > 10


def test_an_operation_that_leaves_other_bytes_is_a_violation(tmp_path, monkeypatch):
    operation = storm.OPERATIONS["generate"]
    monkeypatch.setattr(storm, "disturbed", lambda *args, **kwargs: [])
    monkeypatch.setattr(storm, "finish", lambda operation, folder: [])
    (tmp_path / "start").mkdir()
    (tmp_path / "start/g.jsonl").write_text("answers")
    expected = operation.result(tmp_path / "start")
    assert storm.one_try(tmp_path, operation, "KILL", 1, 1.0, expected) == []
    assert storm.one_try(tmp_path, operation, "KILL", 1, 1.0, {"g.jsonl": "other"}) == [
        "other content in g.jsonl"
    ]
