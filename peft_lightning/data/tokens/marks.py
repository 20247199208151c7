"""Private characters in messages, by which their parts are found in the text that is rendered."""

import bisect
import json
import re
from collections.abc import Sequence
from typing import Any

LITERAL, LITERAL_END = "\ue000", "\ue001"  # around a special token that is ordinary text
THOUGHT_END = "\ue002"  # behind the thought of an assistant's message
PART = "\ue003"  # between parts of different weights
MARKS = (LITERAL, LITERAL_END, THOUGHT_END, PART)

_MARK = re.compile(f"[{''.join(MARKS)}]")
_LITERAL = re.compile(f"{LITERAL}([^{LITERAL_END}]*){LITERAL_END}")
_ESCAPED = re.compile(r"\\u[eE]00[0-3]")

Span = tuple[int, int]  # characters, end exclusive


def without_marks(text: str) -> str:
    """Return ``text`` without the private characters."""
    return _MARK.sub("", text)


def has_marks(value: Any) -> bool:
    """Whether there are marks in the strings of an object of JSON."""
    return _MARK.search(json.dumps(value, ensure_ascii=False, default=str)) is not None


def has_escaped_marks(text: str) -> bool:
    r"""Whether JSON has escaped marks in ``text``, as ``\ue000``."""
    return _ESCAPED.search(text) is not None


def unmark(text: str) -> tuple[str, list[Span], list[int]]:
    """Remove the marks from a text.

    Returns:
        The text; the spans in it whose special tokens are ordinary text; and the positions of the
        marks in the marked text, for ``shift``.
    """
    marks = [mark.start() for mark in _MARK.finditer(text)]
    if not marks:
        return text, [], []
    spans = [(shift(m.start(), marks), shift(m.end(), marks)) for m in _LITERAL.finditer(text)]
    return without_marks(text), spans, marks


def shift(position: int, marks: Sequence[int]) -> int:
    """Return ``position`` in a marked text as a position in the text without ``marks``."""
    return position - bisect.bisect_left(marks, position)
