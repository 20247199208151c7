"""The line that shows how far long work is: at a terminal, in a pipe, beside other text."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from peft_lightning.process.progress import Progress
from peft_lightning.process.progress_format import bar, clock, fitted
from terminal import at_terminal

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "SLURM_PROCID")},
    "PYTHONPATH": str(ROOT),
}


def script(tmp_path, text):
    """Write a script that imports what it needs; return the command that runs it."""
    file = tmp_path / "script.py"
    head = "import logging, os, sys, time\nfrom peft_lightning.process import progress_line\n"
    head += "from peft_lightning.process.progress import Progress\n"
    file.write_text(head + text)
    return [sys.executable, str(file)]


def in_pipe(command, **env):
    done = subprocess.run(
        command, env=ENVIRONMENT | env, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done


def test_times_are_written_as_clocks_show_them():
    assert [clock(s) for s in (0, 7.4, 59.6, 3600, 3661)] == [
        "0:00", "0:07", "1:00", "1:00:00", "1:01:01",
    ]  # fmt: skip


def test_what_does_not_fit_is_left_out_whole_the_most_dispensable_first():
    parts = [(0, "step 12/40"), (9, "[====    ]"), (3, "loss 2.345"), (1, "0:12 left"), (2, "")]
    assert fitted(parts, 80) == "step 12/40  [====    ]  loss 2.345  0:12 left"
    assert fitted(parts, 40) == "step 12/40  loss 2.345  0:12 left"
    assert fitted(parts, 25) == "step 12/40  0:12 left"
    assert fitted(parts, 10) == "step 12/40"
    assert fitted([(0, "a name that is too long")], 10) == "a name ..."


@pytest.mark.parametrize(("share", "want"), [(0, "[    ]"), (0.5, "[==  ]"), (1, "[====]")])
def test_a_bar_is_as_full_as_its_share(share, want):
    assert bar(share, 4) == want


def test_the_time_left_is_that_of_the_rest_at_the_same_pace(monkeypatch):
    work = Progress("reading", 100, "rows")
    work.started, work.done = 0.0, 25
    monkeypatch.setattr("peft_lightning.process.progress.time.monotonic", lambda: 10.0)
    assert fitted(work.parts(), 79) == "reading  [====            ]  25 of 100 rows  0:30 left"


WORK = """
with Progress("working", 30, "pieces") as work:
    for i in range(30):
        time.sleep(0.05)
        work.update(i + 1)
        if i == 15:
            print("a note on stdout")
            print("a note on stderr", file=sys.stderr)
            logging.getLogger("x").warning("a note by logging")
print("the end")
"""


def test_a_terminal_shows_one_line_that_is_gone_in_the_end(tmp_path):
    handler = "logging.getLogger('x').addHandler(logging.StreamHandler())\n"
    seen = at_terminal(script(tmp_path, handler + WORK), tmp_path, ENVIRONMENT)
    assert seen.status == 0
    shown = [state for state in seen.states() if state.startswith("working")]
    assert len(shown) > 3
    assert all(
        re.fullmatch(r"working  \[=* *\]  \d+ of 30 pieces  \d:\d\d( left)?", s) for s in shown
    )
    assert [line for line in seen.screen() if line] == [
        "a note on stdout", "a note on stderr", "a note by logging", "the end",
    ]  # fmt: skip
    assert "\x1b" not in seen.text


def test_work_that_stands_still_shows_its_time_every_second(tmp_path):
    text = "with Progress('loading the base model'):\n    time.sleep(3.6)\n"
    seen = at_terminal(script(tmp_path, text), tmp_path, ENVIRONMENT)
    times = {state.split()[-1] for state in seen.states() if state.startswith("loading")}
    assert len(times) >= 3, seen.writes


def test_quick_work_is_not_shown(tmp_path):
    text = "with Progress('quick', 2) as work:\n    work.update(1)\n    work.update(2)\n"
    seen = at_terminal(script(tmp_path, text), tmp_path, ENVIRONMENT)
    assert seen.text == ""


def test_no_line_is_longer_than_the_terminal_is_wide(tmp_path):
    seen = at_terminal(script(tmp_path, WORK), tmp_path, ENVIRONMENT, columns=30)
    assert max(map(len, seen.states())) <= 29


def test_a_pipe_gets_whole_lines_now_and_then(tmp_path):
    faster = "progress_line.LINE_EVERY = 0.5\nprogress_line.DISPLAY._line_at = time.monotonic()\n"
    done = in_pipe(script(tmp_path, faster + WORK))
    assert done.stdout == "a note on stdout\nthe end\n"
    assert not re.search(r"[\r\x1b]", done.stderr)
    lines = done.stderr.splitlines()
    shown = [line for line in lines if line.startswith("working")]
    assert 1 <= len(shown) <= 4  # 1.5 s of work and more on a busy machine, 0.5 s each
    assert set(lines) - set(shown) == {"a note on stderr", "a note by logging"}


def test_short_work_in_a_pipe_leaves_no_line(tmp_path):
    text = "with Progress('working', 9) as work:\n    [work.update(i) for i in range(9)]\n"
    assert in_pipe(script(tmp_path, text)).stderr == ""


def test_the_streams_are_what_they_were_when_the_work_is_over(tmp_path):
    text = """
before = sys.stdout, sys.stderr
with Progress("outer"):
    with Progress("inner"):
        assert sys.stdout is not before[0]
    assert sys.stdout is not before[0]
assert (sys.stdout, sys.stderr) == before
"""
    assert at_terminal(script(tmp_path, text), tmp_path, ENVIRONMENT).status == 0


def test_only_the_first_process_of_several_shows_anything(tmp_path):
    faster = "progress_line.LINE_EVERY = 0.1\nprogress_line.DISPLAY._line_at = 0\n"
    env = ENVIRONMENT | {"LOCAL_RANK": "1"}
    done = in_pipe(script(tmp_path, faster + WORK), LOCAL_RANK="1")
    assert "working" not in done.stderr
    assert "working" not in at_terminal(script(tmp_path, WORK), tmp_path, env).text


def test_an_error_stands_on_a_line_of_its_own(tmp_path):
    text = "with Progress('working'):\n    time.sleep(0.5)\n    raise SystemExit('error: no')\n"
    seen = at_terminal(script(tmp_path, text), tmp_path, ENVIRONMENT)
    assert [line for line in seen.screen() if line] == ["error: no"]


def test_a_forked_child_draws_nothing(tmp_path):
    text = """
with Progress("working") as work:
    time.sleep(0.4)
    if os.fork() == 0:
        work.what = "child"
        work.update(1)
        print("of the child", flush=True)
        os._exit(0)
    os.wait()
"""
    seen = at_terminal(script(tmp_path, text), tmp_path, ENVIRONMENT)
    assert "of the child" in seen.text
    assert "child  " not in seen.text
