"""Merging what a LoRA trains beside linear layers: embeddings, whole modules, tokens' rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from peft_lightning.adapters.lora.embedding import LoRAEmbedding
from peft_lightning.adapters.lora.extra_modules import Part, parts
from peft_lightning.adapters.lora.modules_to_save import ModulesToSaveWrapper
from peft_lightning.adapters.lora.trainable_tokens import vocabulary_names


def holds_parts(names: Iterable[str]) -> bool:
    """Whether tensors of these names in a file are more than updates of linear layers."""
    return any(
        "lora_embedding_" in name
        or (".lora_" not in name and not name.endswith(("base_layer.weight", ".bias")))
        for name in names
    )


@contextmanager
def merged_parts(model: Any) -> Iterator[None]:
    """Put the base's own modules in their places with the trained values, within the block.

    After it the parts are back, over the base's original tensors. Embeddings that were one weight
    stay one if their merged values are equal.

    Raises:
        ValueError: If a merged value is not finite; names it, and the model is as it was.
    """
    found = parts(model)
    values = {name: _merged(name, part) for name, part in found.items()}
    originals = {name: dict(part.base_layer.named_parameters()) for name, part in found.items()}
    ends = [name for name in vocabulary_names(model) if name]
    weights = [originals[name]["weight"] for name in ends if name in originals]
    was_tied = len(weights) == 2 and weights[0] is weights[1]
    try:
        for name, part in found.items():
            _put(part.base_layer, values.pop(name))
            model.set_submodule(name, part.base_layer)
        if was_tied:
            source, head = (model.get_submodule(name) for name in ends)
            if torch.equal(source.weight, head.weight):
                head.weight = source.weight
        yield
    finally:
        for name, part in found.items():
            _put(part.base_layer, originals[name])
            model.set_submodule(name, part)


@torch.no_grad()
def _merged(name: str, part: Part) -> dict[str, Tensor]:
    """Return the parameters of ``part.base_layer`` with which it computes what ``part`` does."""
    weight = part.base_layer.weight if hasattr(part.base_layer, "weight") else None
    if isinstance(part, ModulesToSaveWrapper):
        merged = part.cast()
    elif isinstance(part, LoRAEmbedding):
        wide = torch.promote_types(part.weight.dtype, torch.float32)
        update = part.lora_embedding_B.to(wide) @ part.lora_embedding_A.to(wide)  # (dim, V)
        merged = {"weight": (part.weight.to(wide) + part.scaling * update.T).to(part.weight.dtype)}
    else:
        assert isinstance(weight, Tensor)
        ids, rows = part.rows
        whole = torch.cat([weight, weight.new_zeros(part.extra, weight.shape[1])])
        merged = {"weight": whole.index_copy(0, ids, rows.to(whole.dtype))}
    if bad := [key for key, value in merged.items() if not value.isfinite().all()]:
        raise ValueError(f"cannot merge into {name}: its {bad[0]} would not be finite")
    return merged


def _put(module: Any, values: dict[str, Any]) -> None:
    """Set parameters of ``module``, and the number of tokens of an embedding to match."""
    for key, value in values.items():
        owner, _, leaf = key.rpartition(".")
        kept = isinstance(value, nn.Parameter)
        parameter = value if kept else nn.Parameter(value, requires_grad=False)
        setattr(module.get_submodule(owner), leaf, parameter)
    if isinstance(module, nn.Embedding):
        module.num_embeddings = len(module.weight)
    elif isinstance(module, nn.Linear):
        module.out_features = len(module.weight)
