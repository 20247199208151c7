"""What was found out about a base is kept in the user's cache folder, for later runs."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers

import peft_lightning
from peft_lightning.files import atomic_text, sha256_of_json, user_cache
from peft_lightning.kernels.native.library import kernels_state
from peft_lightning.kernels.native.stored import output_dtype
from peft_lightning.kernels.own_forward import OwnForward

_CODE = ("adapters", "base_model", "forward_check", "kernels", ".")  # that a result depends on


def file_of(model: Any, own: OwnForward, layout: str, adapter: Any) -> Path | None:
    """Return the file that keeps what was found; None if the base is not known.

    Args:
        model: A causal LM of transformers, within the context that it computes in.
        own: What it computes with by itself.
        layout: Of the batches.
        adapter: The one that is attached, or None; what counts is its class.
    """
    if own.fingerprint is None:
        return None
    kind = model.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    facts = {
        "base": own.fingerprint,
        "config": model.config.to_dict(),
        "code": [_code(type(model)), _code(type(adapter)), _own_code()],
        "adapter": type(adapter).__name__,
        "layout": layout,
        "attention": [model.config._attn_implementation, own.attention_name],
        "layers": len(own.forwards),
        "dtype": [model.dtype, output_dtype(model.get_input_embeddings()), autocast],
        "device": torch.cuda.get_device_name() if kind == "cuda" else [kind, kernels_state()],
        "versions": [torch.__version__, transformers.__version__, peft_lightning.__version__],
    }
    return user_cache("forward_checks") / f"{sha256_of_json(_plain(facts))}.json"


def recall(file: Path | None) -> dict[str, Any] | None:
    """Return what a file keeps; None if there is none that can be read."""
    with suppress(OSError, ValueError):
        kept = None if file is None else json.loads(file.read_text())
        return kept if isinstance(kept, dict) else None
    return None


def remember(file: Path | None, found: dict[str, Any]) -> None:
    """Keep what was found, where the disk allows it."""
    if file is not None:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_text(file, json.dumps(found) + "\n")


def _plain(facts: Any) -> Any:
    return json.loads(json.dumps(facts, default=str, sort_keys=True))


@functools.cache
def _own_code() -> str:
    root, found = Path(peft_lightning.__file__).parent, hashlib.sha256()
    for part in _CODE:
        for file in sorted((root / part).glob("*.py" if part == "." else "**/*.[cph]*")):
            if "__pycache__" not in file.parts:
                found.update(file.read_bytes())
    return found.hexdigest()


def _code(kind: type) -> str:
    """Return what tells the code of a class from others, as of a model that comes with its code."""
    with suppress(OSError, TypeError):
        file = inspect.getsourcefile(kind)
        if file is not None:
            return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return f"{kind.__module__}.{kind.__qualname__}"
