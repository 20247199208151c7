"""What the program does with an exception: its message in one line, and the exit status."""

from __future__ import annotations

import os
import re
import sysconfig
import traceback
from pathlib import Path
from types import TracebackType

import jsonargparse

from peft_lightning.cli.lightning_words import in_our_words
from peft_lightning.files import REFUSED
from peft_lightning.messages import RunError, UserError, printable, redacted

# one of the reasons that jsonargparse lists, in one line
UNION_REASON = re.compile(r"(?<= - )(.+?)(?= - | Given value|$)")
OF_TYPES = re.compile(
    r"Not a valid subclass|Does not validate|Expected a |Import path|a (class|dict)"
)
_LIBRARIES = ("stdlib", "platstdlib", "purelib", "platlib")
_NOT_THE_USERS = (
    *{sysconfig.get_path(name) for name in _LIBRARIES},
    *(str(Path(__file__).parents[1]), "<"),  # this package; and what is no file
)
PARSER = str(Path(jsonargparse.__file__).parent)


def one_line(error: BaseException | str) -> str:
    """Return the message in one line, with the notes that were added to it, without secrets."""
    if isinstance(error, BaseException) and (place := users_place(error)):
        said = f"{place} raised {type(error).__name__}: {error}; --debug shows the traceback"
        return printable(redacted(" ".join(said.split())))
    if isinstance(error, KeyError) and error.args:
        error = str(error.args[0])
    if isinstance(error, OSError) and error.strerror and not isinstance(error, UserError):
        error = _of_system(error)
    notes = getattr(error, "__notes__", [])
    if notes:  # torch's own advice is long, and for who writes programs
        error = ". ".join([str(error).partition(". ")[0] or type(error).__name__, *notes])
    return printable(redacted(in_our_words(" ".join(str(error).split()))))


def users_place(error: BaseException) -> str | None:
    """Return where code of the user's has raised an error: its function, file and line.

    None for an error of ours, and for one that was raised without any code of the user's.
    """
    if isinstance(error, (UserError, RunError)):
        return None
    steps = [
        step
        for step, _ in traceback.walk_tb(error.__traceback__)
        if not step.f_code.co_filename.startswith(_NOT_THE_USERS)
    ]
    if not steps:
        return None
    lines = dict(traceback.walk_tb(error.__traceback__))
    code = steps[-1].f_code
    return f"{code.co_qualname} ({os.path.relpath(code.co_filename)}, line {lines[steps[-1]]})"


def _of_system(error: OSError) -> str:
    """Return what the system refuses, without its number."""
    place = "a file" if error.filename is None else str(error.filename)
    cannot = " cannot be written" if error.errno in REFUSED else ""
    if not cannot and error.filename is None:
        return str(error.strerror)
    return f"{place}{cannot}: {error.strerror}"


def reason_in_union(message: str) -> str:
    """Return why the class of an option could not be built, from jsonargparse's long message.

    Where an option takes one of several types, it lists why each of them does not fit; the reason
    is the one that is not about types.
    """
    if not message.startswith("Does not validate against any of the Union subtypes"):
        return message
    places = re.findall(r"class_path='([^']+)'", message)
    reasons = [r for r in UNION_REASON.findall(message) if not OF_TYPES.match(r)]
    if not places or not reasons:
        return message
    return f"{places[-1].rpartition('.')[2]}: {reasons[-1]}"


def innermost(error: BaseException) -> BaseException:
    """Return the error that a parser's error is about: what the user's class itself raised."""
    found = waiting = error
    while (cause := _reason(waiting)) is not None:
        waiting, last = cause, _last(cause.__traceback__)
        if last is not None and not last.tb_frame.f_code.co_filename.startswith(PARSER):
            found = waiting
    return found


def _reason(error: BaseException) -> BaseException | None:
    """Return the error that another was raised of; None if it was raised ``from None``."""
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _last(traceback: TracebackType | None) -> TracebackType | None:
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback


def _is_lightnings(error: BaseException) -> bool:
    """Whether Lightning's own code has refused something, as it refuses options and metrics."""
    last = _last(error.__traceback__)
    is_refusal = isinstance(error, (ValueError, TypeError, RuntimeError))
    return (
        is_refusal
        and last is not None
        and f"{os.sep}lightning{os.sep}" in last.tb_frame.f_code.co_filename
    )


def exit_status(error: BaseException) -> int | None:
    """Return the exit status for an error that is expected, None for a bug.

    2 if the input is wrong: a ``UserError``, an ``OSError`` (a file, the network, the disk), or an
    option that Lightning refuses. 1 if the run failed: a ``RunError``, or lack of memory.
    """
    misconfigured = "MisconfigurationException" in {c.__name__ for c in type(error).__mro__}
    if misconfigured or isinstance(error, (UserError, OSError)) or _is_lightnings(error):
        return 2
    if isinstance(error, RunError):
        return 1
    if isinstance(error, (MemoryError, RuntimeError)):
        from peft_lightning.training.out_of_memory import is_out_of_memory

        if is_out_of_memory(error):
            return 1
    return 1 if users_place(error) else None
