"""A batch of prompts as inputs of transformers' ``generate``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import GenerationConfig


class PreparesInputs(Protocol):
    """The part of an adapter that generation uses."""

    def prepare_inputs(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        """Return ``batch`` as keyword inputs of ``model``."""

    def is_padding_sensitive(self, model: nn.Module) -> bool:
        """Whether padding changes the answers, so that a batch must have rows of one length."""


def prompt_inputs(
    model: Any, adapter: PreparesInputs | None, rows: Sequence[Sequence[int]], pad: int
) -> dict[str, Any]:
    """Return left-padded token ids of ``rows`` as keyword inputs of ``model`` with ``adapter``."""
    batch = _left_padded(rows, pad, model.device)
    return batch if adapter is None else adapter.prepare_inputs(model, batch)


def first_logits(
    model: Any,
    adapter: PreparesInputs | None,
    config: GenerationConfig,
    rows: Sequence[Sequence[int]],
) -> tuple[Tensor, ...]:
    """Return the logits of the tokens that a greedy answer begins with, (B, V) each.

    Args:
        model: A causal LM.
        adapter: The attached adapter; None if there is none.
        config: How many tokens, and that their logits are returned.
        rows: Token ids of the prompts.
    """
    assert isinstance(config.pad_token_id, int)
    inputs = prompt_inputs(model, adapter, rows, config.pad_token_id)
    with taking_embeddings(model, inputs) as given:
        output = model.generate(**given, generation_config=config)
    logits: tuple[Tensor, ...] = output.logits
    return logits


@contextmanager
def taking_embeddings(model: Any, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield inputs of ``generate`` that say the same for a model which takes token ids alone.

    Some hybrid models have no way for input embeddings through ``generate``: their embedding
    returns those of ``inputs`` when it is asked for the prompt's.
    """
    takes = inspect.signature(model.prepare_inputs_for_generation).parameters
    if "inputs_embeds" not in inputs or "inputs_embeds" in takes:
        yield inputs
        return
    embeds = inputs["inputs_embeds"]
    ids = torch.zeros(embeds.shape[:2], dtype=torch.long, device=embeds.device)

    def replace(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return embeds if output.shape == embeds.shape else output

    others = {name: given for name, given in inputs.items() if name != "inputs_embeds"}
    hook = model.get_input_embeddings().register_forward_hook(replace)
    try:
        yield {**others, "input_ids": ids}
    finally:
        hook.remove()


def _left_padded(rows: Sequence[Sequence[int]], pad: int, device: Any) -> dict[str, Any]:
    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }
