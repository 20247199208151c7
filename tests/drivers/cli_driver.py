"""Runs many command lines in one process, so that the imports are paid once; see ``drive``.

Usage: python cli_driver.py, a list of argument lists as JSON on standard input. Prints a list of
[exit status, standard output, standard error]; the status is "traceback" for an exception.
"""

import contextlib
import io
import json
import logging
import os
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch

import warm_python
from peft_lightning.__main__ import main

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def drive(folder: Path, lines: list[list[str]]) -> list[tuple[int | str, str, str]]:
    """Run several command lines in one process; return (status, output, errors) of each."""
    done = warm_python.run([__file__], cwd=folder, env=ENVIRONMENT, input=json.dumps(lines))
    assert done.returncode == 0, done.stderr
    return [tuple(result) for result in json.loads(done.stdout.splitlines()[-1])]


def wait_for(path: Path, seconds: float = 60) -> None:
    """Return when ``path`` exists."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} is not there after {seconds} s"
        time.sleep(0.02)


def saved_step(checkpoint: Path) -> int:
    """Return the optimizer steps that the run behind ``checkpoint`` had made."""
    return torch.load(checkpoint / "trainer_state.pt", weights_only=True)["global_step"]


def run(args: list[str]) -> tuple[int | str, str, str]:
    """Run one command line as the program would."""
    out, err = io.StringIO(), io.StringIO()
    status: int | str
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(args)
        except Exception:
            status = "traceback"
            traceback.print_exc()
    return status, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    import lightning.pytorch  # noqa: F401  (its log handlers hold on to the stream they meet first)

    for handler in [
        h for n in ("lightning", "lightning.pytorch") for h in logging.getLogger(n).handlers
    ]:
        handler.__class__ = logging._StderrHandler  # writes to what sys.stderr is at the time
    warnings.simplefilter("ignore")
    sys.path.insert(0, ".")
    print(json.dumps([run(args) for args in json.load(sys.stdin)]))
