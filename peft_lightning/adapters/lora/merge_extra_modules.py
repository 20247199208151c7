"""Merging the modules that a LoRA trains beside linear layers; see ``extra_modules``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from peft_lightning.adapters.lora.embedding import LoRAEmbedding
from peft_lightning.adapters.lora.extra_modules import ExtraModule, extra_modules
from peft_lightning.adapters.lora.modules_to_save import ModulesToSaveWrapper
from peft_lightning.adapters.lora.trainable_tokens import vocabulary_names
from peft_lightning.messages import UserError


def has_extra_modules(names: Iterable[str]) -> bool:
    """Whether a file with tensors of these names has more than updates of linear layers."""
    return any(
        "lora_embedding_" in name
        or (".lora_" not in name and not name.endswith(("base_layer.weight", ".bias")))
        for name in names
    )


@contextmanager
def merged_extra_modules(model: Any) -> Iterator[None]:
    """Replace extra modules by the base's own modules with merged values, within the block.

    After the block the extra modules are back, over the base's original tensors. Tied embeddings
    stay tied if their merged values are equal.

    Raises:
        UserError: If a merged value is not finite. The message names it; the model is unchanged.
    """
    found = extra_modules(model)
    values = {name: _merged(name, module) for name, module in found.items()}
    originals = {name: dict(module.base_layer.named_parameters()) for name, module in found.items()}
    embeddings = [name for name in vocabulary_names(model) if name]
    weights = [originals[name]["weight"] for name in embeddings if name in originals]
    was_tied = len(weights) == 2 and weights[0] is weights[1]
    try:
        for name, module in found.items():
            _set_parameters(module.base_layer, values.pop(name))
            model.set_submodule(name, module.base_layer)
        if was_tied:
            source, head = (model.get_submodule(name) for name in embeddings)
            if torch.equal(source.weight, head.weight):
                head.weight = source.weight
        yield
    finally:
        for name, module in found.items():
            _set_parameters(module.base_layer, originals[name])
            model.set_submodule(name, module)


@torch.no_grad()
def _merged(name: str, module: ExtraModule) -> dict[str, Tensor]:
    """Return parameters with which ``module.base_layer`` computes the output of ``module``."""
    weight = module.base_layer.weight if hasattr(module.base_layer, "weight") else None
    if isinstance(module, ModulesToSaveWrapper):
        merged = module.cast()
    elif isinstance(module, LoRAEmbedding):
        wide = torch.promote_types(module.weight.dtype, torch.float32)
        update = module.lora_embedding_B.to(wide) @ module.lora_embedding_A.to(wide)  # (dim, V)
        merged = {
            "weight": (module.weight.to(wide) + module.scaling * update.T).to(module.weight.dtype)
        }
    else:
        assert isinstance(weight, Tensor)
        ids, rows = module.rows
        whole = torch.cat([weight, weight.new_zeros(module.extra, weight.shape[1])])
        merged = {"weight": whole.index_copy(0, ids, rows.to(whole.dtype))}
    if bad := [key for key, value in merged.items() if not value.isfinite().all()]:
        raise UserError(f"cannot merge into {name}: its {bad[0]} would not be finite")
    return merged


def _set_parameters(module: Any, values: dict[str, Any]) -> None:
    """Set parameters of ``module``, and its number of rows to match."""
    for key, value in values.items():
        owner, _, leaf = key.rpartition(".")
        kept = isinstance(value, nn.Parameter)
        parameter = value if kept else nn.Parameter(value, requires_grad=False)
        setattr(module.get_submodule(owner), leaf, parameter)
    if isinstance(module, nn.Embedding):
        module.num_embeddings = len(module.weight)
    elif isinstance(module, nn.Linear):
        module.out_features = len(module.weight)
