"""Runs many command lines in one process, so that the imports are paid once.

Usage: python cli_driver.py, a list of argument lists as JSON on standard input. Prints a list of
[exit status, standard output, standard error]; the status is "traceback" for an exception.
"""

import contextlib
import io
import json
import logging
import sys
import traceback
import warnings

from peft_lightning.__main__ import main


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
