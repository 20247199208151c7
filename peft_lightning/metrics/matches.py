"""Whether an answer is its reference: as a text, as a JSON value, or with more around it."""

from __future__ import annotations

import json
from typing import Any


def exact_match(answer: str, reference: str) -> float:
    """Return 1 if both are the same text but for white space around it, else 0."""
    return float(answer.strip() == reference.strip())


def contains(answer: str, reference: str) -> float:
    """Return 1 if the reference stands in the answer, letter for letter, else 0.

    White space around the reference is ignored. An empty reference is contained in an empty answer
    only: in others it would say nothing.
    """
    wanted = reference.strip()
    return float(wanted in answer if wanted else not answer.strip())


def json_match(answer: str, reference: str) -> float:
    """Return 1 if both are JSON (RFC 8259) of the same value, else 0.

    The order of keys and white space are ignored; 1 and 1.0 are the same number; true is not 1. Of
    a key that occurs twice the last value counts. What is not JSON, as with a word before it or a
    fence around it, or NaN, is 0, also if both are the same text.
    """
    try:
        return float(_typed(_parsed(answer)) == _typed(_parsed(reference)))
    except (ValueError, RecursionError):
        return 0.0


def _parsed(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse)


def _refuse(constant: str) -> Any:
    raise json.JSONDecodeError("not JSON", constant, 0)


def _typed(value: Any) -> Any:
    """Return a value in which true and false equal no number, as they do in Python."""
    if isinstance(value, dict):
        return {key: _typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_typed(inner) for inner in value]
    return str(value) if isinstance(value, bool) else (value,)
