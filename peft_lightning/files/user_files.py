"""The user's text files and the user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path

from peft_lightning.messages import UserError


def user_cache(name: str) -> Path:
    """Return ``peft_lightning/NAME`` in the user's cache folder, which need not be there."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches, "peft_lightning", name).expanduser()


# ---- replacement as a whole ---------------------------------------------------------------------


def read_text(file: str | Path) -> str:
    """Return the text of a user's file.

    Raises:
        UserError: If the file does not exist, or is not text in UTF-8.
    """
    try:
        return Path(file).expanduser().read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"there is no file {file}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no text in UTF-8: {error}") from None
