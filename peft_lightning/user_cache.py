"""The user's cache folder: for what can be made again."""

import os
from pathlib import Path


def user_cache(name: str) -> Path:
    """Return ``peft_lightning/NAME`` in the user's cache folder, which need not be there."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return caches / "peft_lightning" / name
