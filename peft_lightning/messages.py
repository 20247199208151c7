"""Errors that the user is told in one line, and parts of such messages."""

from __future__ import annotations

import difflib
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

_NAME = re.compile(
    r"^token$|(^|_)(api|access|auth|hub|hf|wandb|private)_?(token|key)$"
    r"|passw(or)?d|secret|credentials",
    re.IGNORECASE,
)
_VALUE = re.compile(r"\bhf_\w{20,}|(?<=://)[^/\s@]+(?=@)")
_SHORTEST = 8  # characters of an environment variable that is taken out of texts


class UserError(ValueError):
    """What the user gave is wrong, and the message says how to correct it.

    The command line prints the message in one line and exits with status 2.
    """


class SharedError(UserError):
    """One that every process of a run raises: the first one alone prints it."""


class RunError(RuntimeError):
    """What the user gave is right, and the result is not: a loss is not finite, for example.

    The command line prints the message in one line and exits with status 1.
    """


def shortened(names: Sequence[str], limit: int = 5) -> str:
    """Join names, all of them or the first ``limit`` with the count of the others."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def join_or(names: Sequence[str]) -> str:
    """Join names as "a, b or c"; an empty sequence gives an empty string."""
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def near_names(wrong: str, right: Iterable[str], most: int = 1) -> list[str]:
    """Return the right names that a misspelt one may stand for, the most similar first.

    Case is ignored. A name is similar if its ratio of ``difflib.SequenceMatcher`` is at least
    0.6. If none is, names that begin or end with the wrong one are returned.

    Args:
        wrong: The name that was given.
        right: The names that exist.
        most: Largest number of names to return.
    """
    folded = {name.lower(): name for name in right}
    wrong = wrong.lower()
    near = difflib.get_close_matches(wrong, folded, n=most)
    if not near and wrong:
        near = [name for name in folded if name.startswith(wrong) or name.endswith(wrong)]
    return [folded[name] for name in near[:most]]


def printable(text: str) -> str:
    """Return a text that may come from a stranger's file, its control characters as escapes.

    Newlines stay. A terminal obeys other ones: they move the cursor, or name its window.
    """
    return re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)


def did_you_mean(
    wrong: str | Iterable[str],
    right: Iterable[str],
    most: int = 1,
    show: Callable[[str], str] = str,
) -> str:
    """Return ``"; did you mean NAME?"`` to end a message with, or an empty string.

    Args:
        wrong: The name or names that were given and do not exist.
        right: The names that exist.
        most: Largest number of suggestions for each wrong name.
        show: Turns a name into what the user should write, such as the path of a file.
    """
    right = list(right)
    found = [
        near_names(name, right, most) for name in ([wrong] if isinstance(wrong, str) else wrong)
    ]
    shown = dict.fromkeys(join_or([show(name) for name in names]) for names in found if names)
    return f"; did you mean {', '.join(shown)}?" if shown else ""


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Check that the value of an option is one of its choices.

    Args:
        name: The option's name, as the user writes it.
        value: The value that was given.
        choices: All values that the option can have.

    Raises:
        UserError: If ``value`` is not one of ``choices``; suggests the most similar one.
    """
    if value not in choices:
        hint = "" if value is None else did_you_mean(str(value), choices)
        raise UserError(f"{name} must be {join_or(choices)}, got {value!r}{hint}")


def is_secret(name: Any, value: Any) -> bool:
    """Whether an option of this name and value is one; nothing, numbers and switches are none."""
    text = isinstance(value, str) and bool(value)
    return text and bool(_NAME.search(str(name)) or redacted(value) != value)


def without_secrets(value: Any, removed: list[str] | None = None, path: str = "") -> Any:
    """Return a configuration without its secrets.

    Args:
        value: Dictionaries and lists of plain values.
        removed: Is extended by the dotted names of what is left out.
        path: Of ``value`` itself.
    """
    removed = [] if removed is None else removed
    if isinstance(value, list):
        return [without_secrets(v, removed, f"{path}[{i}]") for i, v in enumerate(value)]
    if not isinstance(value, dict):
        return redacted(value) if isinstance(value, str) else value
    kept = {}
    for name, inner in value.items():
        place = f"{path}.{name}" if path else str(name)
        if is_secret(name, inner):
            removed.append(place)
        else:
            kept[name] = without_secrets(inner, removed, place)
    return kept


def redacted(text: str) -> str:
    """Return ``text`` with ``***`` for tokens, and for what secret environment variables hold."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _NAME.search(name):
            text = text.replace(value, "***")
    return _VALUE.sub("***", text)


def print_one_line_warnings() -> None:
    """Print each warning as one line, without a line of Python, from here on.

    Lightning sets ``warnings.formatwarning`` when it is imported, which may be later.
    """

    def show(message: Any, *where: Any) -> None:
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)

    warnings.showwarning = show  # type: ignore[assignment]
