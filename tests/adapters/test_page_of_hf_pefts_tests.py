"""The page that says which tests stand for HF PEFT's own."""

import ast
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"


def test_each_row_names_tests_that_exist_or_says_why_there_are_none():
    section = PAGE.read_text().partition("## HF PEFT's own tests")[2].partition("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    rows = rows[1:]
    assert len(rows) >= 25
    for _, _, here in rows:
        files = re.findall(r"\]\(\.\./(tests/[^)]+)\): ([^;|]+)", here)
        assert files or here.startswith("not "), here
        for file, names in files:
            tree = ast.parse((PAGE.parents[1] / file).read_text())
            there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            named = set(re.findall(r"`(test_\w+)`", names))
            assert named, here
            assert named <= there, named - there
