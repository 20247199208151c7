"""Numbers, times and bars as a line of progress has them, and what of it fits a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def number(value: float) -> str:
    """Return 1,234 for 1234.4."""
    return f"{value:,.0f}"


def clock(seconds: float) -> str:
    """Return 0:07 for 7 seconds, 1:00:07 for an hour more."""
    hours, rest = divmod(int(seconds + 0.5), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def bar(share: float, width: int = 16) -> str:
    """Return a bar of ``width`` characters and its frame, in ASCII: every terminal has it."""
    full = int(share * width)
    return f"[{'=' * full}{' ' * (width - full)}]"


def fitted(parts: Sequence[tuple[int, str]], width: int) -> str:
    """Return ``parts`` side by side, as many as go into ``width`` columns and all of them whole."""
    kept = [part for part in parts if part[1]]
    while (line := "  ".join(text for _, text in kept)) and len(line) > width and len(kept) > 1:
        last = max(kept, key=lambda part: part[0])
        kept.remove(last)
    return line if len(line) <= width else line[: max(0, width - 3)] + "..."
