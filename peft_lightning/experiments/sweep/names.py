"""The names of a sweep's folders: readable, made of the options that vary and their values."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from peft_lightning.experiments.sweep.points import NAME, SEED, Settings
from peft_lightning.files import sha256_of_json

LONGEST = 120  # characters; file systems allow 255 bytes, and files are made beside a folder
HASH = 8  # characters of the hash that ends a name which would not be unique or is too long
CLASS = re.compile(r"(?:[a-z_]\w*\.)+([A-Z]\w*)")  # a class path


def point_names(points: Sequence[Settings], taken: Collection[str] = ()) -> list[str]:
    """Return a name for each point, such as ``r=8-seed=0``; all are different.

    The name of a listed point stands for its options, which come before it.

    Args:
        points: The settings.
        taken: Names that other points have already.
    """
    labels = _labels(list(dict.fromkeys(key for point in points for key in point)))
    names: list[str] = []
    for point in points:
        parts: list[str] = []
        for key, value in point.items():
            parts = [_value(value)] if key == NAME else [*parts, f"{labels[key]}={_value(value)}"]
        name = "-".join(parts)
        if len(name) > LONGEST or name in names or name in taken:
            name = f"{name[: LONGEST - HASH - 1]}-{sha256_of_json(point)[:HASH]}"
        names.append(name)
    return names


def _labels(keys: Sequence[str]) -> dict[str, str]:
    """Return the ends of dotted keys, as long as they must be to be different."""
    parts = {
        key: [p for p in key.split(".") if p not in ("init_args", "class_path")] for key in keys
    }
    parts |= {key: ["seed"] for key in keys if key == SEED}
    found = {}
    for key, own in parts.items():
        others = [other for k, other in parts.items() if k != key]
        lengths = range(1, len(own) + 1)
        length = next((n for n in lengths if all(o[-n:] != own[-n:] for o in others)), len(own))
        found[key] = ".".join(own[-length:])
    return found


def _value(value: Any) -> str:
    """Return a value in characters that need no quotes in a shell."""
    if isinstance(value, dict):
        named = [_value(value["class_path"])] if "class_path" in value else []
        inner = value.get("init_args", {}) if named else value
        text = "_".join([*named, *(f"{key}={_value(v)}" for key, v in inner.items())])
    elif isinstance(value, list):
        text = "+".join(map(_value, value))
    elif isinstance(value, bool) or value is None:
        text = "none" if value is None else str(value).lower()
    elif isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = str(value)
        if match := CLASS.fullmatch(text):
            text = match[1]
    return re.sub(r"[^\w.+=@-]+", "_", text, flags=re.ASCII).strip("_") or "empty"
