"""Two texts, with the words marked in which they differ."""

from __future__ import annotations

import difflib
import re

from peft_lightning.reports.page import Html, escaped

MOST_WORDS = 2000  # of both together: the comparison takes time in proportion to their product
_WORDS = re.compile(r"\s+|\w+|[^\w\s]")


def marked_differences(before: str, after: str) -> tuple[Html, Html]:
    """Return both texts as HTML, with the words marked that the other has not.

    Args:
        before: The first text; its own words are in ``<del>``.
        after: The second; its own words are in ``<ins>``.

    Returns:
        Both texts; of long ones, or ones without a word in common, nothing is marked.
    """
    old, new = _WORDS.findall(before), _WORDS.findall(after)
    if before == after or len(old) + len(new) > MOST_WORDS:
        return escaped(before), escaped(after)
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    first, second = [], []
    for kind, i, j, k, m in matcher.get_opcodes():
        gone, come = escaped("".join(old[i:j])), escaped("".join(new[k:m]))
        first.append(gone if kind == "equal" or not gone else f"<del>{gone}</del>")
        second.append(come if kind == "equal" or not come else f"<ins>{come}</ins>")
    if matcher.ratio() < 0.1:
        return escaped(before), escaped(after)
    return Html("".join(first)), Html("".join(second))
