"""Execute notebooks in place, and sign their outputs with the code that they came from.

    python scripts/run_notebooks.py [NOTEBOOK ...]

Without names, all of examples/notebooks. The signature, a hash of the sources of the code cells, is
in the notebook's metadata: a test compares it with the cells that are committed.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "examples" / "notebooks"
SECONDS = 1200  # of a cell


def signature(notebook: NotebookNode) -> str:
    """Return a hash of the sources of the code cells, in their order."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\n\0".join(sources).encode()).hexdigest()


def with_parameters(notebook: NotebookNode, values: dict[str, Any]) -> NotebookNode:
    """Return the notebook with a cell that sets ``values`` after the one tagged parameters."""
    place = next(
        i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])
    )
    lines = [f"{name} = {value!r}" for name, value in values.items()]
    cells = [*notebook.cells]
    cells.insert(place + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    return nbformat.from_dict({**notebook, "cells": cells})


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Run all cells from a fresh kernel in ``folder``; the outputs replace those that are there.

    Raises:
        nbclient.exceptions.CellExecutionError: If a cell fails.
    """
    options = {"timeout": SECONDS, "coalesce_streams": True}
    client = NotebookClient(notebook, resources={"metadata": {"path": folder}}, **options)
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return client.execute(env={**os.environ, "PATH": beside})  # whose python the cells call


def without_places(value: Any) -> Any:
    """Return an output with paths from the repository's root, and ``~`` for the user's folder."""
    if isinstance(value, str):
        return value.replace(f"{ROOT}/", "").replace(str(Path.home()), "~")
    if isinstance(value, list):
        return [without_places(part) for part in value]
    if isinstance(value, dict):
        return {name: without_places(part) for name, part in value.items()}
    return value


def main(arguments: list[str]) -> int:
    """Execute the notebooks; return the exit status."""
    for path in [Path(name) for name in arguments] or sorted(FOLDER.glob("*.ipynb")):
        started = time.perf_counter()
        notebook = execute(nbformat.read(path, as_version=4), path.parent.resolve())
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times
            if cell.cell_type == "code":
                cell.outputs = [nbformat.from_dict(without_places(o)) for o in cell.outputs]
        notebook.metadata["executed"] = {
            "signature": signature(notebook),
            "seconds": round(time.perf_counter() - started),
        }
        nbformat.write(notebook, path)
        print(f"{path}: {notebook.metadata['executed']['seconds']} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
