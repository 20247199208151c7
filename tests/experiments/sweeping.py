"""A sweep in the process of a test, its points in forks of one that has made the imports."""

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest

import warm_python
from cli_driver import ENVIRONMENT
from peft_lightning.__main__ import main
from peft_lightning.experiments.sweep import runner

HERE = Path(__file__).parents[1]
ENV = {**ENVIRONMENT, "PYTHONPATH": f"{HERE / 'slurm'}:{HERE.parent}"}


def warm(args: list[str], **options: Any) -> warm_python.Program:
    """Start python as ``start_python`` does, in a fork of one that has made the imports."""
    return warm_python.start(args, **options)


def in_this_process(folder: Path, args: list[str]) -> tuple[int, str, str]:
    """Run a command line here, its points in forks; return (status, output, errors)."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.chdir(folder)
        patch.setattr(runner, "start_python", warm)
        for key in ("OMP_NUM_THREADS", "PYTHONPATH"):
            patch.setenv(key, ENV[key])
        for path in reversed(ENV["PYTHONPATH"].split(":")):
            patch.syspath_prepend(path)
        status = main(args)
    return status, out.getvalue(), err.getvalue()
