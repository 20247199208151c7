"""What the program does with an exception: its message in one line, and the exit status."""

from __future__ import annotations

import dis
from pathlib import Path
from types import TracebackType

import jsonargparse

from peft_lightning.messages import redacted

PACKAGE = str(Path(__file__).parents[1])
PARSER = str(Path(jsonargparse.__file__).parent)


def one_line(error: BaseException | str) -> str:
    """Return the message in one line, with the notes that were added to it, without secrets."""
    if isinstance(error, KeyError) and error.args:
        error = str(error.args[0])
    notes = getattr(error, "__notes__", [])
    if notes:  # torch's own advice is long, and for who writes programs
        error = ". ".join([str(error).partition(". ")[0] or type(error).__name__, *notes])
    return redacted(" ".join(str(error).split()))


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


def exit_status(error: BaseException) -> int | None:
    """Return the exit status for an error that was foreseen, None for one that was not.

    Foreseen is what a ``raise`` statement of this package raised, what the system refused (a
    file, the network, disk space, memory), and what Lightning calls a misconfiguration: 1 if the
    training itself failed, 2 if the user's input is wrong.
    """
    names = {c.__name__ for c in type(error).__mro__}
    if "MisconfigurationException" in names or isinstance(error, OSError):
        return 2
    if isinstance(error, (MemoryError, RuntimeError)):
        from peft_lightning.training.out_of_memory import is_out_of_memory

        if is_out_of_memory(error):
            return 1
    if not _raised_here(error.__traceback__) or isinstance(error, NotImplementedError):
        return None
    return 1 if isinstance(error, RuntimeError) else 2


def _raised_here(traceback: TracebackType | None) -> bool:
    """Whether the error comes from a ``raise`` statement in this package."""
    last = _last(traceback)
    if last is None:
        return False
    code = last.tb_frame.f_code
    raises = code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return raises and code.co_filename.startswith(PACKAGE)
