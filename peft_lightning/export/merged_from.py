"""What a merged folder keeps of the adapter that was merged, and the names of its own files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from peft_lightning.adapters.base import as_json
from peft_lightning.adapters.folder import read_json
from peft_lightning.export.unverified import UNVERIFIED
from peft_lightning.files import Kind, unedited_card

FILE = "merged_from.json"


def write_merged_from(folder: Path, found: Mapping[str, Any]) -> None:
    """Keep what a model card says of the adapter in the merged folder.

    Args:
        folder: The merged model's.
        found: Method, base model, options, facts, summary and config of the run.
    """
    files = sorted(file.name for file in folder.iterdir())
    text = as_json({**found, "files": files})
    (folder / FILE).write_text(f"{text}\n", encoding="utf-8")


def read_merged_from(folder: Path) -> dict[str, Any] | None:
    """Return what ``write_merged_from`` kept in a folder; None if it is none of a merged model.

    Raises:
        UserError: If the file cannot be read.
    """
    return read_json(folder / FILE) if (folder / FILE).is_file() else None


def _files(folder: Path) -> Collection[str] | None:
    found = read_merged_from(folder)
    if found is None or "files" not in found:
        return None
    return {FILE, UNVERIFIED, *found["files"], *unedited_card(folder)}


MERGED = Kind("merged model", _files, lambda folder: (folder / UNVERIFIED).is_file())
