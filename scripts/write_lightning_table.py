"""Write the table of docs/lightning.md from the cases that its tests try.

Usage: python scripts/write_lightning_table.py [--check]

With --check, nothing is written: the exit status is 1 if the page is not up to date.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "lightning.md"
START = "<!-- written by scripts/write_lightning_table.py -->\n"


def page() -> str:
    """Return the page, with the table that the cases give."""
    from lightning_case import table
    from lightning_cases import SECTIONS

    text, start, _ = PAGE.read_text("utf-8").partition(START)
    return f"{text}{start}\n{table(SECTIONS)}"


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "training")]
    text = page()
    if "--check" in sys.argv[1:]:
        sys.exit(text != PAGE.read_text("utf-8"))
    PAGE.write_text(text, "utf-8")
