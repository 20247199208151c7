"""What messages to the user have in common: the nearest right name, short lists, no secrets."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

_NAME = re.compile(
    r"^token$|(^|_)(api|access|auth|hub|hf|wandb|private)_?(token|key)$"
    r"|passw(or)?d|secret|credentials",
    re.IGNORECASE,
)
_VALUE = re.compile(r"\bhf_\w{20,}|(?<=://)[^/\s@]+(?=@)")
_SHORTEST = 8  # characters of an environment variable that is taken out of texts


def shortened(names: Sequence[str], limit: int = 5) -> str:
    """Join names, all of them or the first ``limit`` with the count of the others."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def nearest(wrong: Iterable[str], right: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the nearest right name of each wrong one, or nothing."""
    right = list(right)
    found = [difflib.get_close_matches(name, right, n=1, cutoff=0.5) for name in wrong]
    names = list(dict.fromkeys(match for matches in found for match in matches))
    return f"; did you mean {', '.join(names)}?" if names else ""


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
