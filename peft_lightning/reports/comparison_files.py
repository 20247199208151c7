"""The files of a comparison: page, Markdown, tables and answers."""

from __future__ import annotations

import json
from pathlib import Path

from peft_lightning.files import atomic_text
from peft_lightning.messages import UserError
from peft_lightning.reports.comparison import Comparison
from peft_lightning.reports.comparison_page import comparison_page
from peft_lightning.reports.comparison_text import answer_lines, as_csv, as_json, as_markdown


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write compare.html, compare.md, compare.csv, compare.json and answers.jsonl.

    Raises:
        UserError: If the folder cannot be written.
    """
    texts = {
        "compare.html": comparison_page(comparison),
        "compare.md": as_markdown(comparison),
        "compare.csv": as_csv(comparison),
        "compare.json": json.dumps(as_json(comparison), indent=2, default=str) + "\n",
        "answers.jsonl": "".join(f"{line}\n" for line in answer_lines(comparison)),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            atomic_text(folder / name, text)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror}; give another folder with --out"
        ) from None
