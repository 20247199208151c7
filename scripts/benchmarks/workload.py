"""The benchmark's rows: text of the standard library, in the lengths of instruction data."""

from __future__ import annotations

import ast
import random
import sysconfig
from pathlib import Path
from typing import Any

MODULES = ("argparse", "ast", "calendar", "datetime", "difflib", "inspect", "subprocess", "typing")
LENGTHS = (41, 400)  # tokens of a row
ANSWER = 1 / 3  # share of a row that is labelled
POOL = 50  # batches whose rows transformers' length grouping sorts at once

Row = tuple[list[int], list[int]]  # token ids of a prompt and of its answer


def rows(tokenizer: Any, count: int, seed: int = 0, longest: int = LENGTHS[1]) -> list[Row]:
    """Return ``count`` rows: code as the prompt, documentation as the answer.

    Args:
        tokenizer: Of the base model.
        count: Rows.
        seed: Decides texts and lengths, the latter drawn evenly from ``LENGTHS``.
        longest: Most tokens of a row.
    """
    draw = random.Random(seed)
    code, docs = (tokenizer(text, verbose=False)["input_ids"] for text in _texts())
    found = []
    for _ in range(count):
        length = draw.randint(min(LENGTHS[0], longest), longest)
        answer = max(1, round(length * ANSWER))
        starts = draw.randrange(len(code) - length), draw.randrange(len(docs) - length)
        found.append(
            (code[starts[0] :][: length - answer], docs[starts[1] :][:answer]),
        )
    return found


def batches(
    tokenizer: Any, count: int, size: int, seed: int = 0, longest: int = LENGTHS[1]
) -> list[list[Row]]:
    """Return ``count`` batches of ``size`` rows, the same for every variant; see ``rows``."""
    drawn = rows(tokenizer, count * size, seed, longest)
    return [drawn[i : i + size] for i in range(0, len(drawn), size)]


def grouped_batches(
    tokenizer: Any, count: int, size: int, seed: int = 0, longest: int = LENGTHS[1]
) -> list[list[Row]]:
    """Return ``count`` batches of rows of similar length, in random order.

    They are taken evenly from ``POOL`` batches' rows sorted by length, what length grouping makes
    of a data set; few rows alone would leave it nothing to group.
    """
    drawn = sorted(rows(tokenizer, POOL * size, seed, longest), key=lambda row: sum(map(len, row)))
    places = [(2 * i + 1) * POOL // (2 * count) * size for i in range(count)]
    found = [drawn[i : i + size] for i in places]
    random.Random(seed).shuffle(found)
    return found


def _texts() -> tuple[str, str]:
    """Return source code, and the documentation in it."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    sources = [(folder / f"{name}.py").read_text("utf-8") for name in MODULES]
    kinds = (ast.FunctionDef, ast.ClassDef, ast.Module)
    nodes = [n for source in sources for n in ast.walk(ast.parse(source)) if isinstance(n, kinds)]
    return "\n".join(sources), "\n\n".join(filter(None, map(ast.get_docstring, nodes)))
