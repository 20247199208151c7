"""HF PEFT's folders of a base with a resized vocabulary: only the new rows are kept.

HF PEFT saves both embeddings whole there, and loads them onto a base resized likewise only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from peft_lightning.adapters.lora.trainable_tokens import is_tied, vocabulary_names
from peft_lightning.adapters.state_dict import PREFIX
from peft_lightning.messages import UserError

TokenIndices = list[int] | dict[str, list[int]] | None  # LoRA's option trainable_token_indices

_ROWS = "token_adapter.trainable_tokens_delta"
_COPIES = ("token_adapter.base_layer.weight", "original_module.weight")


def keep_only_new_rows(
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    token_indices: TokenIndices,
    modules_to_save: Sequence[str] | None,
    ensure_weight_tying: bool,
) -> tuple[TokenIndices, dict[str, Tensor]]:
    """Replace whole embeddings of a file by the rows that the base does not have.

    Args:
        tensors: The file's tensors.
        model: The plain base, without an adapter.
        token_indices: The option ``trainable_token_indices`` of the file's adapter.
        modules_to_save: Its option ``modules_to_save``.
        ensure_weight_tying: Its option ``ensure_weight_tying``.

    Returns:
        The option ``trainable_token_indices`` and the tensors for the plain base, both unchanged
        if the file holds no whole embedding.

    Raises:
        UserError: If rows that the base has are different in the file.
    """
    found = dict(tensors)
    rows: dict[str, tuple[list[int], Tensor]] = {}
    names = [name for name in vocabulary_names(model) if name]
    whole_ones = {n for n in names if n.endswith(tuple(modules_to_save or ["\0"]))}
    if whole_ones and ensure_weight_tying and is_tied(model):
        whole_ones = set(names)
    for name in names:
        stem = f"{PREFIX}{name}."
        if saved := name in whole_ones:  # the trained weight is there under its plain name too
            found.pop(f"{stem}modules_to_save.weight", None)
        keys = [stem + copy for copy in (*_COPIES, *(() if saved else ("weight",)))]
        copies = [found.pop(key) for key in keys if key in found]
        if not copies:
            continue
        base, whole = cast(Tensor, model.get_submodule(name).weight), copies[0]
        common = min(len(base), len(whole))
        if not torch.equal(whole[:common].to(base), base[:common]):
            raise UserError(
                f"the rows of {name} in the file are not this model's: load the base that the "
                "adapter was trained on"
            )
        if saved:
            continue
        ids = list(range(len(base), len(whole)))
        if (delta := found.pop(stem + _ROWS, None)) is not None:
            trained = _ids_of(token_indices, name)
            ids = [*trained, *(i for i in ids if i not in trained)]
            whole = whole.to(delta).index_copy(0, torch.tensor(trained), delta)
        if ids:
            rows[name] = ids, whole[ids]
    if is_tied(model) and len(rows) == 2:
        (ids, values), (others, same) = rows.values()
        if ids == others and torch.equal(values, same):
            del rows[names[1]]
    if not rows:
        return token_indices, found
    tokens = dict(token_indices) if isinstance(token_indices, dict) else {}
    tokens = {k: v for k, v in tokens.items() if not any(name.endswith(k) for name in rows)}
    for name, (ids, values) in rows.items():
        found[f"{PREFIX}{name}.{_ROWS}"] = values
        tokens[name] = ids
    return tokens, found


def _ids_of(token_indices: TokenIndices, name: str) -> list[int]:
    """Return the ids to train of the embedding ``name``."""
    if isinstance(token_indices, dict):
        return list(next(ids for key, ids in token_indices.items() if name.endswith(key)))
    return list(token_indices or [])
