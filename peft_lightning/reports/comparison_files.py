"""The files of a comparison: page, Markdown with its plots, tables and answers."""

from __future__ import annotations

import json
import re
from pathlib import Path

from peft_lightning.files import atomic_text
from peft_lightning.messages import UserError
from peft_lightning.reports.comparison import Comparison
from peft_lightning.reports.comparison_page import comparison_page
from peft_lightning.reports.comparison_plots import plots_of
from peft_lightning.reports.comparison_text import answer_lines, as_csv, as_json, as_markdown


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write compare.html, compare.md and its plots, compare.csv, compare.json and answers.jsonl.

    Raises:
        UserError: If the folder cannot be written.
    """
    plots = [plots_of(one) for one in comparison.sets]
    files = [
        [(f"compare-{i}.{j}.svg", plot) for j, plot in enumerate(of_set, 1)]
        for i, of_set in enumerate(plots, 1)
    ]
    linked = [[(name, plot.caption) for name, plot in of_set] for of_set in files]
    texts = {
        **{name: _by_itself(plot.svg) for of_set in files for name, plot in of_set},
        "compare.html": comparison_page(comparison),
        "compare.md": as_markdown(comparison, linked),
        "compare.csv": as_csv(comparison),
        "compare.json": json.dumps(as_json(comparison), indent=2, default=str) + "\n",
        "answers.jsonl": "".join(f"{line}\n" for line in answer_lines(comparison)),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("compare-*.svg"):
            if re.fullmatch(r"compare-\d+\.\d+\.svg", old.name):
                old.unlink()
        for name, text in texts.items():
            atomic_text(folder / name, text)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror}; give another folder with --out"
        ) from None


def _by_itself(svg: str) -> str:
    """Return an SVG that is readable without the page: on white, whatever is behind it."""
    return svg.replace("<svg ", '<svg style="background: white; color: black" ', 1) + "\n"
