"""The notebooks run from scratch, and their outputs are those of the code that is committed."""

import re
from pathlib import Path

import nbformat
import pytest

from run_notebooks import FOLDER, execute, signature, with_parameters
from tiny_run import write_base

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SMALL = {  # of the parameters, for a tiny base
    "finetune_lora": {"TRAINED": 16, "VALIDATED": 8},
    "load_adapters": {"STEPS": 2},
    "prompt_tuning": {"STEPS": 2, "VALIDATED": 4},
}
pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def texts(cell):
    """Return the texts that a cell's outputs show."""
    shown = [o.get("text", "") for o in cell.outputs]
    return shown + [str(text) for o in cell.outputs for text in o.get("data", {}).values()]


def test_the_outputs_come_from_the_code_that_is_committed(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata["executed"]["signature"] == signature(notebook)
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(o.output_type == "error" for cell in cells for o in cell.outputs)
    assert any("image/png" in o.get("data", {}) for cell in cells for o in cell.outputs) or (
        path.stem == "load_adapters"
    )


def test_the_outputs_name_no_place_of_one_machine(path):
    for cell in code_cells(path):
        for text in texts(cell):
            assert not re.search(r"(/root|/home|/work|/tmp|/Users)/", text), text[:200]


def test_it_has_the_three_levels_of_the_course_with_an_answer_each(path):
    cells = nbformat.read(path, as_version=4).cells
    headings = [c.source for c in cells if c.cell_type == "markdown" and c.source.startswith("##")]
    assert [h[3] for h in headings if h.startswith("## ")] == ["🐢", "🐕", "🦁"]
    assert not any("ANSWER" in c.source for c in cells)


def test_it_runs_from_scratch(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = write_base(tmp_path / "base")
    values = {"BASE": str(base), "RUNS": str(tmp_path / "runs"), **SMALL[path.stem]}
    notebook = with_parameters(nbformat.read(path, as_version=4), values)
    for cell in execute(notebook, path.parent).cells:
        if cell.cell_type == "code" and cell.source.startswith("!python"):
            shown = "".join(texts(cell))
            assert shown.strip(), cell.source  # an error goes to stderr, which is not shown
            assert "error" not in shown.lower(), cell.source
