"""Whether JSON texts may say more than their parsed values keep: repeated keys, half pairs.

Python's parser takes the last of two equal keys in silence. To have it call a function for each
object takes half as long again as parsing, so keys are counted instead: in the bytes of many lines
at once, where a key ends with a quote before a colon, and in the value of each line. Only where the
numbers differ is a line parsed again.
"""

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNKNOWN = -1  # the number of keys of a line in which they cannot be told from single bytes
MOST_CHANGES = 8  # of a column, above which its next value is not compared
_QUOTE, _COLON, _BACKSLASH = b'":\\'
_IS_BLANK = np.isin(np.arange(256), list(b" \t\n\r"))  # by the byte
_IS_QUOTE_OR_BLANK = np.isin(np.arange(256), list(b'" \t\n\r'))
_IS_THIRD_DIGIT = np.isin(np.arange(256), list(b"89abcdefABCDEF"))  # of \ud800 to \udfff


def written_keys(lines: Sequence[bytes]) -> list[int]:
    """Return the number of keys in each line of JSON, ``UNKNOWN`` where it takes a parser.

    That is where a colon follows its key after a blank, and where a key ends with a backslash.

    Args:
        lines: Lines in UTF-8, or an encoding that has ASCII's bytes for ASCII only.
    """
    content = np.frombuffer(b"    " + b"".join(lines), np.uint8)
    ends = np.cumsum([len(line) for line in lines]) + 4
    colons = np.flatnonzero(content == _COLON)
    before, second = content[colons - 1], content[colons - 2]
    is_end = before == _QUOTE
    is_unknown = np.zeros_like(is_end)
    if not is_end.all():
        is_unknown = _IS_BLANK[before] & _IS_QUOTE_OR_BLANK[second]
    is_escaped = is_end & (second == _BACKSLASH)
    if is_escaped.any():
        is_end &= ~is_escaped
        is_unknown |= is_escaped & (content[colons - 3] == _BACKSLASH)
    keys = _per_line(colons[is_end], ends)
    if is_unknown.any():
        keys[_per_line(colons[is_unknown], ends) > 0] = UNKNOWN
    counts: list[int] = keys.tolist()
    return counts


def surrogate_escapes(lines: Sequence[bytes]) -> list[int] | None:
    r"""Return the number of escapes \\ud800 to \\udfff in each line; None if there is none."""
    text = b"".join(lines)
    if b"\\" not in text:
        return None
    content = np.frombuffer(text + b"    ", np.uint8)
    places = np.flatnonzero(content == _BACKSLASH)
    places = places[content[places + 1] == ord("u")]
    places = places[(content[places + 2] | 0x20) == ord("d")]
    places = places[_IS_THIRD_DIGIT[content[places + 3]]]
    if not len(places):
        return None
    counts: list[int] = _per_line(places, np.cumsum([len(line) for line in lines])).tolist()
    return counts


class KeyCounter:
    """Compares the keys of rows with those that their lines have.

    Many rows have the same tools, whose count is remembered by their column. A column that changes
    is counted in each row.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[Any, int]] = {}
        self._changes: Counter[str] = Counter()

    def has_keys(self, value: dict[str, Any], number: int) -> bool:
        """Whether a parsed object and all objects in it have ``number`` keys together."""
        keys = len(value)
        for column in value.values():
            if type(column) is list and column and type(column[0]) is dict:
                try:
                    keys += sum(map(dict.__len__, column))  # messages
                except TypeError:  # there are other values beside them
                    break
        return keys == number or self._num_keys(value) == number

    def _num_keys(self, value: dict[str, Any]) -> int:
        keys = len(value)
        for name, column in value.items():
            if type(column) is not dict and type(column) is not list:
                continue
            same, count = self._known.get(name, (None, 0))
            if same != column:
                count = num_keys(column)
                self._changes[name] += 1
                if self._changes[name] <= MOST_CHANGES:  # a copy, as the row may be changed
                    self._known[name] = (copy.deepcopy(column), count)
                else:
                    self._known.pop(name, None)
            keys += count
        return keys


def num_keys(value: Any) -> int:
    """Return the number of keys of all objects in a parsed value."""
    keys, containers = 0, [value]
    for container in containers:  # which grows
        if type(container) is dict:
            keys += len(container)
            container = container.values()
        for inner in container:
            if type(inner) is dict or type(inner) is list:
                containers.append(inner)
    return keys


def _per_line(places: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count ascending places by the line that they are in; ``ends`` are those of the lines."""
    return np.diff(np.searchsorted(places, ends), prepend=0)
