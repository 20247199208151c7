"""HF PEFT's folders that hold embeddings whole: only the rows that the base has not are kept.

HF PEFT saves both embeddings where the vocabulary was resized, and where it is asked to; it loads
them onto a base resized likewise only.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, cast

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
    modules_to_save: list[str] | None,
    ensure_weight_tying: bool,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Replace whole embeddings of a file by the rows that the base does not have.

    An embedding of which most rows are others than the base's is one of ``modules_to_save``.

    Args:
        tensors: The file's tensors.
        model: The plain base, without an adapter.
        token_indices: The option ``trainable_token_indices`` of the file's adapter.
        modules_to_save: Its option ``modules_to_save``.
        ensure_weight_tying: Its option ``ensure_weight_tying``.

    Returns:
        The options that change, and the tensors for the plain base; none and all of them if the
        file holds no whole embedding.

    Raises:
        UserError: If an embedding in the file has another width.
    """
    found = dict(tensors)
    rows: dict[str, tuple[list[int], Tensor]] = {}
    added: list[str] = []
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
        if not copies or saved:
            continue
        base, whole = cast(Tensor, model.get_submodule(name).weight), copies[0]
        changed = _changed_rows(name, base, whole)
        ids = [*changed, *range(len(base), len(whole))]
        if (delta := found.pop(stem + _ROWS, None)) is not None:
            trained = _ids_of(token_indices, name)
            ids = [*trained, *(i for i in ids if i not in trained)]
            whole = whole.to(delta).index_copy(0, torch.tensor(trained), delta)
        if 2 * len(changed) > len(base) and len(whole) >= len(base):
            added.append(name)
            found[f"{stem}weight"] = whole
        elif ids:
            rows[name] = ids, whole[ids]
    if is_tied(model) and len(rows) == 2:
        (ids, values), (others, same) = rows.values()
        if ids == others and torch.equal(values, same):
            del rows[names[1]]
    if not rows and not added:
        return {}, found
    tokens = dict(token_indices) if isinstance(token_indices, dict) else {}
    if isinstance(token_indices, list) and names[0] not in (*rows, *added):
        tokens[names[0]] = token_indices
    there = [*rows, *added]
    if is_tied(model) and f"{PREFIX}{names[-1]}.{_ROWS}" not in found:
        there.append(names[-1])  # its rows are those of the input embedding
    tokens = {k: v for k, v in tokens.items() if not any(name.endswith(k) for name in there)}
    for name, (ids, values) in rows.items():
        found[f"{PREFIX}{name}.{_ROWS}"] = values
        tokens[name] = ids
    options: dict[str, Any] = {"trainable_token_indices": tokens or None}
    if added:
        options["modules_to_save"] = [*(modules_to_save or []), *added]
    return options, found


def _changed_rows(name: str, base: Tensor, whole: Tensor) -> list[int]:
    """Return the ids of rows that the base has and that are others in the file; say how many."""
    if base.shape[1:] != whole.shape[1:]:
        raise UserError(
            f"{name} in the file is {tuple(whole.shape)}, and in this model {tuple(base.shape)}: "
            "give the base that the adapter was trained on"
        )
    common = min(len(base), len(whole))
    differs = (whole[:common].to(base) != base[:common]).any(1)
    changed = cast(list[int], differs.nonzero()[:, 0].tolist())
    if changed:
        warnings.warn(
            f"{len(changed)} of the {len(base)} rows of {name} are others in the file, which are "
            "used, as by HF PEFT; if they were not trained, give the base that the adapter was "
            "trained on",
            stacklevel=1,
        )
    return changed


def _ids_of(token_indices: TokenIndices, name: str) -> list[int]:
    """Return the ids to train of the embedding ``name``."""
    if isinstance(token_indices, dict):
        return list(next(ids for key, ids in token_indices.items() if name.endswith(key)))
    return list(token_indices or [])
