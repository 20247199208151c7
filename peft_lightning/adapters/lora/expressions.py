"""Regular expressions of users and strangers over the names of layers, with a limit in time.

A short expression can take centuries over a short name: ``(a+)+$`` tries every way to divide it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

from peft_lightning.messages import UserError
from peft_lightning.process.time_limit import OutOfTimeError, time_limit

LIMIT_SECONDS = 1.0  # for one name; what is meant as an expression takes microseconds


def require_expression(value: str, option: str, words: Sequence[str] = ()) -> None:
    """Check that a text is a regular expression.

    Args:
        value: The text.
        option: The option that it is the value of.
        words: What else the option may be.

    Raises:
        UserError: If it is none; says what is wrong with it.
    """
    try:
        _compiled(value)
    except (re.error, OverflowError, RecursionError) as error:
        what = f"neither one of {', '.join(words)} nor a" if words else "no"
        hint = "; names go in a list" if words else ""
        raise UserError(
            f"{option} {value!r:.200} is {what} regular expression ({error}){hint}"
        ) from None


def fullmatch(expression: str, name: str) -> bool:
    """Whether an expression matches the whole of a layer's name.

    Raises:
        UserError: If it takes too long.
    """
    with _limited(expression, name):
        return _compiled(expression).fullmatch(name) is not None


def within_time(expression: str, name: str) -> re.Match[str] | None:
    """Return the match of an expression at the beginning of a layer's name.

    Raises:
        UserError: If it takes too long.
    """
    with _limited(expression, name):
        return _compiled(expression).match(name)


_compiled = cache(re.compile)


@contextmanager
def _limited(expression: str, name: str) -> Iterator[None]:
    """Give up after the limit."""
    try:
        with time_limit(LIMIT_SECONDS):
            yield
    except OutOfTimeError:
        raise UserError(
            f"the regular expression {expression!r:.200} takes more than {LIMIT_SECONDS:g} s for "
            f"the name {name!r:.200}: a repetition within a repetition, such as (a+)+, tries every "
            "way to divide it"
        ) from None
