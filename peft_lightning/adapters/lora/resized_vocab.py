"""HF PEFT's folders of a base whose vocabulary was enlarged by hand: only what is new is kept.

HF PEFT saves both embeddings whole then, and reads them onto an enlarged base only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from peft_lightning.adapters.lora.trainable_tokens import is_tied, vocabulary_names

if TYPE_CHECKING:
    from peft_lightning.adapters.lora.method import LoRA

_ROWS = "token_adapter.trainable_tokens_delta"
_COPIES = ("token_adapter.base_layer.weight", "original_module.weight")


def only_new_rows(
    adapter: LoRA,
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    base_weight: Callable[[str], Tensor],
) -> tuple[LoRA, dict[str, Tensor]]:
    """Return an adapter as it is on the plain base: with rows of tokens instead of embeddings.

    Args:
        adapter: Read from a folder.
        tensors: Its tensors.
        model: The plain base, without an adapter.
        base_weight: Returns the base's weight of a module by its name.

    Returns:
        The adapter and its tensors; as they are if they hold no whole embedding.

    Raises:
        ValueError: If the rows that the base has too are others in the file.
    """
    found = dict(tensors)
    rows: dict[str, tuple[list[int], Tensor]] = {}
    names = [name for name in vocabulary_names(model) if name]
    whole_ones = {n for n in names if n.endswith(tuple(adapter.modules_to_save or ["\0"]))}
    if whole_ones and adapter.ensure_weight_tying and is_tied(model):
        whole_ones = set(names)
    for name in names:
        stem = f"base_model.model.{name}."
        if saved := name in whole_ones:  # the trained weight is there under its plain name too
            found.pop(f"{stem}modules_to_save.weight", None)
        keys = [stem + copy for copy in (*_COPIES, *(() if saved else ("weight",)))]
        copies = [found.pop(key) for key in keys if key in found]
        if not copies:
            continue
        base, whole = base_weight(name), copies[0]
        common = min(len(base), len(whole))
        if not torch.equal(whole[:common].to(base), base[:common]):
            raise ValueError(
                f"the rows of {name} in the file are not this model's: load the base that the "
                "adapter was trained on"
            )
        if saved:
            continue
        ids = list(range(len(base), len(whole)))
        if (delta := found.pop(stem + _ROWS, None)) is not None:
            trained = _trained_ids(adapter, name)
            ids = [*trained, *(i for i in ids if i not in trained)]
            whole = whole.to(delta).index_copy(0, torch.tensor(trained), delta)
        if ids:
            rows[name] = ids, whole[ids]
    if is_tied(model) and len(rows) == 2:
        (ids, values), (others, same) = rows.values()
        if ids == others and torch.equal(values, same):
            del rows[names[1]]
    if not rows:
        return adapter, found
    given = adapter.trainable_token_indices
    tokens = dict(given) if isinstance(given, dict) else {}
    tokens = {k: v for k, v in tokens.items() if not any(name.endswith(k) for name in rows)}
    for name, (ids, values) in rows.items():
        found[f"base_model.model.{name}.{_ROWS}"] = values
        tokens[name] = ids
    return replace(adapter, trainable_token_indices=tokens), found


def _trained_ids(adapter: LoRA, name: str) -> list[int]:
    given = adapter.trainable_token_indices
    if isinstance(given, dict):
        return list(next(ids for key, ids in given.items() if name.endswith(key)))
    return list(given or [])
