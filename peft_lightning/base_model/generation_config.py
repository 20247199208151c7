"""A model's generation_config.json: read, and mended where transformers would refuse it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig
from transformers.utils import cached_file

FILE = "generation_config.json"
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def mended_options(source: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return what makes ``from_pretrained`` take a model whose generation config it would refuse.

    Args:
        source: As ``locate`` returns it.
        options: ``revision`` and ``local_files_only`` for a hub id; others are left alone.

    Returns:
        The option ``generation_config``, nothing if that of the model is valid; and what was left
        out of it, each with the reason.
    """
    values, left_out = mended(values_of(source, options))
    return ({"generation_config": GenerationConfig(**values)} if left_out else {}), left_out


def values_of(source: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a model's generation config, as of ``read_values``; {} without one.

    Args:
        source: As ``locate`` returns it, with ``options``.
        options: ``revision`` and ``local_files_only`` for a hub id; others are left alone.
    """
    hub = {key: options[key] for key in ("revision", "local_files_only") if key in options}
    found = cached_file(
        source,
        FILE,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **hub,
    )
    return read_values(Path(found).parent) if found else {}


def read_values(folder: Path) -> dict[str, Any]:
    """Return the content of a model folder's generation config.

    Without one these are the ids of its config, as transformers has it.
    """
    for name in (FILE, "config.json"):
        try:
            values = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(values, dict):
            return values if name == FILE else {k: values[k] for k in _IDS if k in values}
    return {}


def mended(values: Mapping[str, Any], strict: bool = False) -> tuple[dict[str, Any], list[str]]:
    """Return a generation config without what makes it invalid, and what that was.

    Args:
        values: Content of the file.
        strict: Whether also what transformers loads with a warning, but refuses to save, is left
            out: options of sampling without ``do_sample``, for example, which do nothing.

    Returns:
        The content, and a text for each value that is left out: its name, itself and the reason.
    """
    kept, left_out = dict(values), []
    while problem := _problem(kept, strict):
        named = [name for name in re.findall(r"\w+", problem) if name in kept]
        name = next((n for n in named if _problem(_without(kept, n), strict) != problem), None)
        if name is None:  # it is about none of them by itself: the ids are what is needed
            others = [n for n in kept if n not in _IDS] or list(kept)
            left_out.append(f"{', '.join(others)} ({problem})")
            kept = {n: v for n, v in kept.items() if n not in others}
            continue
        left_out.append(f"{name} {kept.pop(name)!r:.60} ({problem})")
    return kept, left_out


def _problem(values: Mapping[str, Any], strict: bool) -> str | None:
    """Return the first thing that is wrong, in one line."""
    if not _are_ids(values.get("eos_token_id")):
        return "eos_token_id must be an id or a list of ids"
    try:
        GenerationConfig(**values).validate(strict=strict)
    except (ValueError, TypeError, AttributeError) as error:
        lines = [line for line in str(error).splitlines() if not line.endswith("invalid: ")]
        sentence = re.split(r"\. (?!However)| -- ", lines[0])[0] if lines else type(error).__name__
        return re.sub(r"^- `\w+`: ", "", sentence).rstrip(".")
    return None


def _are_ids(value: Any) -> bool:
    ids = value if isinstance(value, list) else [value]
    return all(i is None or (isinstance(i, int) and i >= 0) for i in ids)


def _without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {n: v for n, v in values.items() if n != name}
