"""Training above frozen lower layers whose outputs are read from disk (``cache_hidden_states``)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor

from peft_lightning.adapters import Adapter
from peft_lightning.hidden_cache.frozen_layers import FrozenLayers, frozen_depth
from peft_lightning.hidden_cache.store import Batch, HiddenStates, batch_of, frozen_states
from peft_lightning.messages import UserError


class HiddenStateCache:
    """The states of all rows of a run; a batch of these rows skips the frozen layers.

    Args:
        layers: The frozen layers.
        sources: Their outputs for the rows of each source.
    """

    def __init__(self, layers: FrozenLayers, sources: Sequence[HiddenStates]) -> None:
        self.layers, self.sources = layers, list(sources)

    def skipping(self, batch: Batch) -> AbstractContextManager[None]:
        """Return a context in which the model, given ``batch``, skips the frozen layers.

        A batch with a row that is none of theirs, such as the one token of an empty batch, runs
        them.
        """
        ids, flat = batch["input_ids"], "seq_lens" in batch
        if flat:
            rows = ids[0].cpu().split(list(batch["seq_lens"]))
        else:
            mask = batch["attention_mask"].bool().cpu()
            rows = [row[kept] for row, kept in zip(ids.cpu(), mask, strict=True)]
        found = [self._find(row.numpy()) for row in rows]
        present = [states for states in found if states is not None]
        if len(present) < len(found):
            return nullcontext()
        states = torch.cat(present)
        if not flat:
            states = states.new_zeros(*ids.shape, states.shape[-1]).masked_scatter(
                mask[..., None], states
            )
        return self.layers.skipped(states.view(*ids.shape, -1).to(ids.device))

    def _find(self, ids: NDArray[np.int64]) -> Tensor | None:
        return next((s for source in self.sources if (s := source.find(ids)) is not None), None)


def adapted_depth(model: Any, adapter: Adapter) -> int:
    """Return how many of the lowest decoder layers see nothing of what ``adapter`` trains."""
    return frozen_depth(model) if leaves_inputs(adapter) else 0


def leaves_inputs(adapter: Adapter) -> bool:
    """Whether ``adapter`` gives the model a batch as it is, without virtual tokens."""
    return type(adapter).prepare_inputs is Adapter.prepare_inputs


def cache_of_run(module: Any) -> HiddenStateCache:
    """Return the cache for a module that is about to be trained, computed where it is not there.

    Raises:
        UserError: If no layer is below the adapter, one may draw random numbers, or the run is
            of a kind that this does not work for.
    """
    trainer, outputs = module.trainer, module.outputs
    depth = adapted_depth(module.model, module.adapter)
    if depth == 0:
        raise UserError(
            f"cache_hidden_states: true needs lowest layers that nothing trained reaches, and "
            f"{type(module.adapter).__name__} trains the inputs or the first layer: adapt the "
            "upper layers only (layers_to_transform), or set cache_hidden_states to false"
        )
    layers = FrozenLayers(module.model, depth)
    if (name := layers.random_module()) is not None:
        raise UserError(
            f"cache_hidden_states: true, but {name}, in or below the frozen layers, is in training "
            "mode, where it may draw random numbers: leave the base in eval mode"
        )
    if outputs.routers is not None:
        raise UserError(
            "cache_hidden_states: true leaves out the routers of the frozen layers, which are part "
            "of the load-balancing loss: set model.router_aux_loss to 0, or cache_hidden_states to "
            "false"
        )
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        raise UserError(
            f"cache_hidden_states: true does not go with {type(trainer.strategy).__name__}: "
            "it needs the whole model in each process"
        )
    data = trainer.datamodule
    if not hasattr(data, "tokenized_datasets"):
        raise UserError(
            "cache_hidden_states: true needs the rows of SFTDataModule, not a bare loader"
        )
    first = [data.tokenized_datasets[0][0]["input_ids"]]
    flat = data.batch_options.layout == "flat"
    with trainer.precision_plugin.forward_context():
        flat = flat and outputs.takes_flat(_on(batch_of(first, True), module.device))

    def run(batch: Batch) -> Tensor:
        with trainer.precision_plugin.forward_context():
            return layers.run(**outputs.model_inputs(_on(batch, module.device)))

    sources = frozen_states(
        run,
        data.tokenized_datasets,
        {
            "base": module.fingerprint,
            "quantization": module.quantization,
            "layers": depth,
            "precision": str(trainer.precision),
            "stored": str(module.model.dtype),  # "dtype" is that of the states
            "attention": module.model.config._attn_implementation,
            "device": module.device.type,
        },
        flat=flat,
        limit=int(module.hidden_cache_gib * 2**30),
        announce=rank_zero_info,
    )
    cache = HiddenStateCache(layers, sources)
    _verify(cache, module, batch_of(first, flat))
    return cache


@torch.no_grad()
def _verify(cache: HiddenStateCache, module: Any, batch: Batch) -> None:
    """Raise UserError if the model's outputs are others when the frozen layers are skipped."""
    batch = _on(batch, module.device)
    inputs = module.outputs.model_inputs(batch)
    with module.trainer.precision_plugin.forward_context():
        plain = module.model(**inputs, use_cache=False).logits
        with cache.skipping(batch):
            skipped = module.model(**inputs, use_cache=False).logits
    half = plain.dtype in (torch.bfloat16, torch.float16)
    gap, largest = (plain - skipped).abs().max().item(), plain.abs().max().item()
    if not gap <= (0.05 if half else 1e-3) * max(1.0, largest):
        raise UserError(
            f"cache_hidden_states: true moves the outputs of {type(module.model).__name__} by "
            f"{gap:.2g}: its frozen layers cannot be skipped, or {cache.sources[0].folder} is not "
            "theirs. Remove that folder, or set cache_hidden_states to false"
        )


def _on(batch: Batch, device: torch.device) -> Batch:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
