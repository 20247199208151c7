"""Folders that `datasets` writes with ``save_to_disk``: which of their files hold the rows."""

import json
from pathlib import Path
from typing import Any

from peft_lightning.data.files.data_files import DataFile
from peft_lightning.messages import UserError

STATE_FILE, DICT_FILE = "state.json", "dataset_dict.json"
SIDE_FILES = (STATE_FILE, DICT_FILE, "dataset_info.json", "dataset_infos.json")


def saved_files(folder: Path) -> list[DataFile] | None:
    """Return the files of a folder written by ``save_to_disk`` in their order; None for another.

    Raises:
        UserError: If it names a file that is not in the folder, or was saved with indices.
    """
    state = read_object(folder / STATE_FILE)
    entries = state.get("_data_files")
    if not isinstance(entries, list):
        return None
    if state.get("_indices_data_files"):
        raise UserError(f"{folder}: saved with indices; save it again with a newer `datasets`")
    columns = None if state.get("_output_all_columns") else state.get("_format_columns")
    kept = tuple(map(str, columns)) if isinstance(columns, list) else None
    files = []
    for entry in entries:
        name = str(entry.get("filename")) if isinstance(entry, dict) else ""
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise UserError(f"{folder}/{STATE_FILE} names {name!r}, which is not in this folder")
        files.append(DataFile(path, "arrow", columns=kept))
    return files


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        UserError: If there is none.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path}: damaged, not a JSON object; copy the folder again")
    return content
