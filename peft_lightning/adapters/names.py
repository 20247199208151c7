"""Names in messages: the nearest ones, and lists that stay readable."""

import difflib
from collections.abc import Iterable, Sequence


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
