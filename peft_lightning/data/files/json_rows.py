"""Rows as JSON text: parsed, and refused where the text says more than Python keeps of it.

Python's parser takes the last of two equal keys, and half a surrogate pair as a character that no
tokenizer takes. Both are found at little cost: only a text in which they could be is parsed again.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from peft_lightning.data.records import MAX_ROW_SIZE, Record, RowError

_HALF_PAIR = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|"
    r"(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)


class _Repeated(dict[str, Any]):
    """An object one of whose keys occurs twice."""

    key: str


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    repeated, seen = _Repeated(value), set()
    for key, _ in pairs:
        if key in seen:
            repeated.key = key
        seen.add(key)
    return repeated


_parse = json.JSONDecoder().raw_decode
_parse_marking = json.JSONDecoder(object_pairs_hook=_object).raw_decode


def parse_json(text: str) -> tuple[Any, bool]:
    """Parse a JSON text without blanks around it.

    NaN and Infinity are numbers, as Python writes them.

    Returns:
        The value, and whether ``problem_of`` may find something in it.

    Raises:
        json.JSONDecodeError: If it is not JSON.
        RecursionError: If it is nested too deeply.
        ValueError: For an integer of thousands of digits.
    """
    value, end = _parse(text)
    if end != len(text):
        blanks = len(text[end:]) - len(text[end:].lstrip())
        raise json.JSONDecodeError("Extra data", text, end + blanks)
    if not _may_have_half_pairs(text) and _has_each_key(text, value):
        return value, False
    return _parse_marking(text)[0], True


def parse_row(line: bytes, codec: str = "utf-8") -> Record:
    """Return the row of a line.

    Raises:
        RowError: If it is not a JSON object, or one that cannot be used.
        UnicodeDecodeError: If it is not in the encoding ``codec``.
    """
    if len(line) > MAX_ROW_SIZE:
        detail = f"{len(line):,} bytes; a row has at most {MAX_ROW_SIZE:,}"
        raise RowError("a line that is too long", detail)
    try:
        record, is_suspicious = parse_json(line.decode(codec).strip())
    except json.JSONDecodeError as error:
        if b"\0" in line:
            detail = f"the first is byte {line.index(0) + 1} of the line"
            raise RowError("NUL bytes", detail) from None
        raise RowError("invalid JSON", f"{error.msg} at column {error.colno}") from None
    except UnicodeDecodeError:
        raise
    except ValueError as error:  # an integer with thousands of digits
        raise RowError("invalid JSON", str(error)) from None
    except RecursionError:
        raise RowError("invalid JSON", "nested too deeply") from None
    if type(record) is dict and not is_suspicious:
        return record
    return require_row(record)


def require_row(value: Any) -> Record:
    """Return a parsed value that is a row.

    Raises:
        RowError: If it is not an object, or ``problem_of`` finds something.
    """
    if not isinstance(value, dict):
        found = type(value).__name__
        raise RowError("not an object", f"got {found}, a row is {{column: value, ...}}")
    problem = problem_of(value)
    if problem is not None:
        raise problem
    return value


def repeated_key(value: Any) -> str | None:
    """Return a key that occurs twice in a parsed object itself, not in what it holds."""
    return value.key if isinstance(value, _Repeated) else None


def problem_of(value: Any) -> RowError | None:
    """Return the error for a repeated key or half a surrogate pair anywhere in a parsed value."""
    stack: list[tuple[Any, str]] = [(value, "")]
    while stack:
        value, place = stack.pop()
        texts: Iterable[str] = (value,) if isinstance(value, str) else ()
        if isinstance(value, dict):
            if isinstance(value, _Repeated):
                where = f" in {place}" if place else ""
                detail = f"{value.key!r}{where}; which value is meant is unclear, keep one"
                return RowError("a repeated key", detail)
            texts = value
            stack += [(v, f"{place}.{k}" if place else k) for k, v in value.items()]
        elif isinstance(value, list):
            stack += [(v, f"{place}[{i}]") for i, v in enumerate(value)]
        for text in texts:
            for character in text:
                if "\ud800" <= character <= "\udfff":
                    escape = f"\\u{ord(character):04x}"
                    where = f" in {ascii(place)[1:-1]}" if place else ""
                    detail = f"{escape}{where} is not a character, such as a cut emoji; remove it"
                    return RowError("half of a surrogate pair", detail)
    return None


def _may_have_half_pairs(text: str) -> bool:
    if "\\ud" not in text and "\\uD" not in text:
        return False
    return "\\\\u" in text or _HALF_PAIR.search(text) is not None  # "\\\\u" is no escape of a pair


def _has_each_key(text: str, value: Any) -> bool:
    """Whether ``value`` has as many keys as ``text``: each ends with a quote before a colon.

    A quote before a colon inside a string, and a blank between the two, give False.
    """
    if " :" in text or "\t:" in text or "\n:" in text or "\r:" in text:
        return False
    written = text.count('":')
    if type(value) is dict:
        keys = len(value)
        for column in value.values():
            if type(column) is list and {*map(type, column)} == {dict}:
                keys += sum(map(len, column))  # messages
        if keys == written:
            return True
    return _num_keys(value) == written


def _num_keys(value: Any) -> int:
    """Return the number of keys of all objects in a parsed value."""
    keys, stack = 0, [value]
    while stack:
        value = stack.pop()
        if type(value) is dict:
            keys += len(value)
            stack += value.values()
        elif type(value) is list:
            stack += value
    return keys
