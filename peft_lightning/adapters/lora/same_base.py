"""Whether LoRA adapters are of one base: by its fingerprint, its name, its layers, or itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from peft_lightning.adapters.base_check import require_base
from peft_lightning.adapters.lora.layers import is_conv1d, is_linear
from peft_lightning.base_model import base_fingerprint, load_base_model
from peft_lightning.base_model.weights import NotStreamableError, open_weights
from peft_lightning.messages import UserError

Updates = Mapping[str, tuple[Tensor, Tensor]]
_REMEDY = "give the one that they have in common with --base_model, and they are checked against it"


def require_one_base(
    folders: Sequence[str], facts: Sequence[Mapping[str, Any]], updates: Sequence[Updates]
) -> None:
    """Raise UserError if adapters are of different bases, as far as their folders tell.

    Two fingerprints decide; where one is missing, as in HF PEFT's folders, the names of the bases
    do. The layers are in the same blocks anyway.

    Args:
        folders: The adapters' folders, for the message.
        facts: The facts of each, as ``read_facts`` returns them.
        updates: The updates of each, by layer.
    """
    known = [(f, x) for f, x in zip(folders, facts, strict=True) if x["base_fingerprint"]]
    for folder, fact in known[1:]:
        if fact["base_fingerprint"] != known[0][1]["base_fingerprint"]:
            raise UserError(
                f"{folder} was trained on another base model than {known[0][0]}: "
                f"{fact['base_model']} and {known[0][1]['base_model']}"
            )
    for index, (folder, fact) in enumerate(zip(folders, facts, strict=True)):
        first, blocks = _blocks(updates[0]), _blocks(updates[index])
        if first and blocks and first.isdisjoint(blocks):
            raise UserError(
                f"{folder} is of another architecture than {folders[0]}: it adapts layers in "
                f"{min(blocks)}, and the other in {min(first)}"
            )
        names = (facts[0]["base_model"], fact["base_model"])
        are_told = facts[0]["base_fingerprint"] and fact["base_fingerprint"]
        if None not in names and not are_told and len({_place(str(name)) for name in names}) > 1:
            raise UserError(
                f"{folder} was trained on {names[1]}, and {folders[0]} on {names[0]}, and not both "
                f"have a fingerprint of it: {_REMEDY}"
            )


def require_base_of_all(
    base_model: str,
    folders: Sequence[str],
    facts: Sequence[Mapping[str, Any]],
    updates: Sequence[Updates],
    **options: Any,
) -> dict[str, Any]:
    """Return the fingerprint of a base that adapters are to have in common.

    Args:
        base_model: Hub id, folder or GGUF file.
        folders: As for ``require_one_base``, as the next two.
        facts: The facts of each.
        updates: The updates of each.
        options: ``trust_remote_code`` and ``revision``, for the base.

    Raises:
        UserError: If one has the fingerprint of another base, or a layer that this one has not.
    """
    model: Any
    try:
        weights = open_weights(base_model, **options)
        model, fingerprint = weights.model, weights.fingerprint()
    except NotStreamableError:
        model = load_base_model(base_model, **options)
        fingerprint = base_fingerprint(model)
    modules = dict(model.named_modules())
    for folder, fact, of_folder in zip(folders, facts, updates, strict=True):
        if fact["base_fingerprint"]:
            require_base(folder, fact, fingerprint, "Leave it out, or give that one")
        for name, (b, a) in of_folder.items():
            shape = (b.shape[0], a.shape[1])
            layer = modules.get(name)
            there = _shape(layer) if layer is not None and is_linear(layer) else None
            if there != shape:
                raise UserError(
                    f"{folder} is of another base than {base_model}: its update of {name} is "
                    f"{shape}, and the layer is {there or 'not there'}"
                )
    return fingerprint


def _shape(layer: Any) -> tuple[int, ...]:
    """Return (out_features, in_features)."""
    shape = tuple(layer.weight.shape)
    return shape[::-1] if is_conv1d(layer) else shape


def _blocks(updates: Updates) -> set[str]:
    """Return the names of the module lists whose numbered modules hold adapted layers."""
    found = (re.match(r"(.*?)\.\d+\.", name) for name in updates)
    return {match[1] for match in found if match}


def _place(name: str) -> str:
    """Return a name for a base that is the same however its folder is written."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name.rstrip("/")
