"""What fit writes while it works, at a terminal of 80 columns and in a pipe; the time left."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import warm_python
from peft_lightning.process.progress_format import fitted
from peft_lightning.process.progress_line import DISPLAY
from peft_lightning.training.progress_bar import TokenProgressBar
from peft_lightning.training.time_left import TimeLeft
from terminal import at_terminal
from tiny_run import fit

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "SLURM_PROCID")},
    **{"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
}
COMMAND = [sys.executable, "-m", "peft_lightning"]
CHATTER = re.compile(
    r"GPU available|TPU|litlogger|litmodels|Seed set|Trainer\.fit|it/s|site-packages|sync_dist"
    r"|num_workers|dirpath|Mixed Precision|v_num"
)


def options(base, rows):
    given = ["--model.base_model", str(base), "--data.train", str(rows), "--data.batch_size", "1"]
    return [*given, "--data.val_fraction", "0.2", "--trainer.max_epochs", "6"]


@pytest.fixture(scope="module")
def piped(base, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("piped")
    env = ENVIRONMENT | {"XDG_CACHE_HOME": str(folder / "cache"), "PEFT_LIGHTNING_KERNELS": "off"}
    command = [*COMMAND, "fit", *options(base, rows), "--trainer.default_root_dir", "runs/a"]
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=170
    )
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture(scope="module")
def seen(base, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("terminal")
    env = ENVIRONMENT | {"XDG_CACHE_HOME": str(folder / "cache"), "PEFT_LIGHTNING_KERNELS": "off"}
    command = [*COMMAND, "fit", *options(base, rows), "--trainer.default_root_dir", "runs/a"]
    found = at_terminal(command, folder, env)
    assert found.status == 0, found.text
    return found


def test_a_pipe_gets_neither_carriage_returns_nor_escape_codes(piped):
    _, done = piped
    assert not re.search(r"[\r\x1b\x08]", done.stdout + done.stderr)


def test_a_pipe_gets_the_tables_and_the_result_on_stdout_and_the_rest_on_stderr(piped):
    folder, done = piped
    assert re.match(r"trained +tensors +parameters", done.stdout)
    steps = json.loads((folder / "runs" / "a" / "summary.json").read_text())["steps"]
    *_, first, second, third = done.stdout.splitlines()
    assert re.match(
        rf"trained {steps} steps in \d:\d\d; train/loss .* val/loss \S+ at best$", first
    )
    assert second == "the result is in runs/a/checkpoints/best.ckpt; to try it:"
    assert third.startswith(
        "  python -m peft_lightning generate --ckpt_path runs/a/checkpoints/best.ck"
    )
    assert "held out" in done.stderr


def test_no_more_than_a_line_of_progress_in_ten_seconds_goes_into_a_pipe(piped):
    folder, done = piped
    shown = re.compile(r"\d:\d\d( left)?$")
    lines = [line for line in done.stderr.splitlines() if shown.search(line)]
    spent = sum(
        json.loads((folder / "runs" / "a" / "summary.json").read_text())["seconds"].values()
    )
    assert len(lines) <= 1 + (spent + 60) / 10  # the end of the process is not counted there


def test_no_library_chats(piped, seen):
    _, done = piped
    for text in (done.stdout, done.stderr, seen.text):
        assert not CHATTER.search(text), CHATTER.search(text)


def test_the_next_command_that_is_named_works(piped):
    folder, done = piped
    line = done.stdout.splitlines()[-1].replace("'...'", "hello --max_new_tokens 2")
    again = warm_python.run(line.split()[1:], cwd=folder, env=ENVIRONMENT)
    assert again.returncode == 0, again.stderr
    assert not re.search(r"[\r\x1b]", again.stdout + again.stderr)


def test_a_terminal_shows_one_bar_with_one_time(seen):
    states = [state for state in seen.states() if "step " in state and " left" in state]
    assert states, seen.text
    form = re.compile(
        r"epoch \d/6  step \d+/\d+(  \[=* *\])?(  validating \d+/\d+)?(  loss \S+)?(  \S+ tok/s)?"
        r"(  val/loss \S+)?(  lr \S+)?  (about )?\d:\d\d left"
    )
    for state in states:
        assert form.fullmatch(state), state
    assert "\x1b" not in seen.text


def test_a_terminal_of_80_columns_is_never_filled_by_the_bar(seen):
    states = [state for state in seen.states() if " left" in state]
    assert max(map(len, states)) < 80


def test_nothing_of_the_bar_is_left_and_no_line_is_torn(seen):
    lines = [line for line in seen.screen() if line]
    assert not [line for line in lines if line.startswith(("epoch", "starting"))]
    notes = ("format prompt_completion", "kept", "held out", "trained 1", "the result is in")
    for note in notes:
        assert len([line for line in lines if note in line]) == 1, (note, lines)


# ---- the time that is left ----------------------------------------------------------------------


def test_the_first_forward_pass_tells_about_how_long_the_run_takes():
    left = TimeLeft(batches=10)
    left.batch_starts(100.0)
    assert left.seconds(101.0) is None  # no layer yet
    for _ in range(6):
        left.layer_ends(30)
    # 30 layers take 10 s, and the batch with its backward pass 25 s; 2 s of it are over
    assert left.seconds(102.0) == pytest.approx(10 * 25 - 2)
    assert left.is_rough


def test_later_it_is_the_mean_of_the_batches_without_the_first():
    left = TimeLeft(batches=12)
    for start, end in ((0, 100), (100, 110), (110, 130)):
        left.batch_starts(start)
        left.batch_ends(end)
    assert left.seconds(130.0) == pytest.approx(9 * 15)
    assert not left.is_rough
    left.batch_starts(130.0)
    assert left.seconds(136.0) == pytest.approx(9 * 15 - 6)  # counts down within a batch


def test_validations_to_come_are_part_of_the_time_left():
    left = TimeLeft(batches=4, evaluations=2, evaluation_batches=5)
    for start in (0.0, 1.0):
        left.batch_starts(start)
        left.batch_ends(start + 1)
    assert left.seconds(2.0) == pytest.approx(2 * 1 + 2 * 5 / TimeLeft.FORWARD_PASSES)
    left.evaluation_starts(2.0)
    left.evaluation_batch_ends(1)
    assert left.seconds(8.0) == pytest.approx(2 * 1 + (5 - 1) * 6 + 5 * 6)
    left.evaluation_ends(32.0)
    assert left.seconds(32.0) == pytest.approx(2 * 1 + 30)


def test_the_estimate_of_a_real_run_falls_to_nothing(base, rows, tmp_path):
    class Watch(TokenProgressBar):
        """Keeps the number of batches and validations that it expects at each step."""

        def __init__(self):
            super().__init__()
            self.expected = []

        def on_train_batch_end(self, trainer, *args):
            super().on_train_batch_end(trainer, *args)
            self.expected.append(
                (self._time.batches - self._time._finished, self._time.evaluations)
            )

    watch = Watch()
    fit(
        base, rows, tmp_path / "run", data={"val_fraction": 0.25}, callbacks=[watch],
        enable_progress_bar=True, accumulate_grad_batches=1,
    )  # fmt: skip
    assert [batches for batches, _ in watch.expected] == list(range(9, -1, -1))
    assert [evaluations for _, evaluations in watch.expected] == [2] * 5 + [1] * 5
    assert not watch._hooks
    assert not DISPLAY._works


def test_the_bar_shows_what_an_experiment_logs(base, rows, tmp_path):
    class Watch(TokenProgressBar):
        """Keeps the lines."""

        def __init__(self):
            super().__init__()
            self.lines = []

        def on_train_batch_end(self, trainer, module, *args):
            module.log("margin", torch.tensor(0.25), prog_bar=True)
            self._read_at = float("-inf")
            super().on_train_batch_end(trainer, module, *args)
            self.lines.append(fitted(self._work.parts(), 200))

    watch = Watch()
    fit(base, rows, tmp_path / "run", callbacks=[watch], enable_progress_bar=True, max_steps=2)
    assert "margin 0.25" in watch.lines[-1]
