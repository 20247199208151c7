"""What the program does with an exception: its message in one line, and the exit status."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import TracebackType

import jsonargparse

from peft_lightning.messages import RunError, UserError, printable, redacted

# one of the reasons that jsonargparse lists, in one line
UNION_REASON = re.compile(r"(?<= - )(.+?)(?= - | Given value|$)")
OF_TYPES = re.compile(
    r"Not a valid subclass|Does not validate|Expected a |Import path|a (class|dict)"
)
PARSER = str(Path(jsonargparse.__file__).parent)


def one_line(error: BaseException | str) -> str:
    """Return the message in one line, with the notes that were added to it, without secrets."""
    if isinstance(error, KeyError) and error.args:
        error = str(error.args[0])
    notes = getattr(error, "__notes__", [])
    if notes:  # torch's own advice is long, and for who writes programs
        error = ". ".join([str(error).partition(". ")[0] or type(error).__name__, *notes])
    return printable(redacted(" ".join(str(error).split())))


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
    while (cause := waiting.__cause__ or waiting.__context__) is not None:
        waiting, last = cause, _last(cause.__traceback__)
        if last is not None and not last.tb_frame.f_code.co_filename.startswith(PARSER):
            found = waiting
    return found


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

        return 1 if is_out_of_memory(error) else None
    return None
