"""What a merged folder keeps of the adapter that was merged: for its model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft_lightning.adapters.base import as_json
from peft_lightning.adapters.folder import read_json

FILE = "merged_from.json"


def write_merged_from(folder: Path, found: Mapping[str, Any]) -> None:
    """Keep what a model card says of the adapter in the merged folder.

    Args:
        folder: The merged model's.
        found: Method, base model, options, facts, summary and config of the run.
    """
    (folder / FILE).write_text(f"{as_json(found)}\n", encoding="utf-8")


def read_merged_from(folder: Path) -> dict[str, Any] | None:
    """Return what ``write_merged_from`` kept in a folder; None if it is none of a merged model.

    Raises:
        UserError: If the file cannot be read.
    """
    return read_json(folder / FILE) if (folder / FILE).is_file() else None
