"""Run-time checks that a faster way to compute a loss is exact for the model at hand."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from peft_lightning.adapters import Adapter
from peft_lightning.adapters.lora.modules_to_save import ModulesToSaveWrapper
from peft_lightning.adapters.lora.trainable_tokens import TrainableTokensLayer
from peft_lightning.base_model.quantization import rounds_inputs
from peft_lightning.kernels.attention import forward_inputs
from peft_lightning.kernels.isolation import isolation_error
from peft_lightning.kernels.native import stored
from peft_lightning.kernels.own_forward import evaluating
from peft_lightning.kernels.shared_prefix import prefix_error
from peft_lightning.linear_cross_entropy import head_options

Batch = dict[str, Any]


def has_plain_head(model: Any) -> bool:
    """Whether the logits are those of the output embedding alone, soft-capped and scaled at most.

    Compares them on four tokens, in eval mode.

    Args:
        model: A causal LM of transformers, with or without an adapter.
    """
    head = model.get_output_embeddings()
    decoder = getattr(model, "get_decoder", lambda: None)()
    is_wrapped = isinstance(head, ModulesToSaveWrapper | TrainableTokensLayer)
    layer = head.base_layer if is_wrapped else head
    if type(layer) is not nn.Linear or not isinstance(decoder, PreTrainedModel) or decoder is model:
        return False
    ids = torch.arange(4, device=layer.weight.device)[None] % layer.out_features
    options = head_options(model.config.to_dict())
    with evaluating(model), torch.no_grad():
        hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state
        if hidden.shape[-1] != layer.in_features:  # there is another layer between
            return False
        logits = model(input_ids=ids, use_cache=False).logits
        ours = F.pad(stored.linear(hidden, head.weight), (0, getattr(head, "extra", 0)))
        if (rows := getattr(head, "rows", None)) is not None:
            ours[..., rows[0]] = F.linear(hidden, rows[1].to(hidden.dtype))
        if head.bias is not None:
            ours[..., : len(head.bias)] += head.bias
        ours *= options.get("scale", 1.0)
        if cap := options.get("softcap"):
            ours = cap * torch.tanh(ours / cap)
    tolerance = 4 * max(torch.finfo(t.dtype).eps for t in (ours, logits))
    return (ours - logits).abs().max().item() <= tolerance * logits.abs().max().item()


def takes(model: Any, name: str) -> bool:
    """Whether a model's forward has an argument of that name."""
    return name in inspect.signature(model.forward).parameters


def flat_batch_error(
    model: Any, adapter: Adapter | None, prepare: Callable[[Any, Batch], Any]
) -> str | None:
    """Compare flat batches with a sequence alone; see ``isolation_error``.

    Args:
        model: A causal LM with ``adapter`` attached, or with none.
        adapter: Prepares the sequence alone.
        prepare: Prepares the flat batches: a method of ``adapter``.

    Returns:
        None if all is well, else what is wrong.
    """

    def forward(batch: Batch) -> Tensor:
        alone = len(batch["seq_lens"]) == 1
        inputs = (adapter.prepare_inputs if alone and adapter else prepare)(model, batch)
        return model(**forward_inputs(model, inputs), use_cache=False).logits

    vocabulary = model.get_input_embeddings().weight.shape[0]
    with evaluating(model):
        return isolation_error(forward, vocabulary, model.device, coarse=rounds_inputs(model))


def shared_prefix_error(model: Any, plain_head: bool) -> str | None:
    """Check that a prefix which is computed once is the same for all sequences.

    Args:
        model: A causal LM whose adapter leaves inputs alone.
        plain_head: Whether the hidden states are compared, from which the loss is computed, and
            not the logits.

    Returns:
        None if all is well, else what is wrong.
    """

    def forward(batch: Batch) -> Tensor:
        inputs = forward_inputs(model, batch)
        if plain_head:
            hidden: Tensor = model.get_decoder()(**inputs, use_cache=False)[0]
            return hidden
        return model(**inputs, use_cache=False).logits

    vocabulary = model.get_input_embeddings().weight.shape[0]
    try:
        with evaluating(model):
            return prefix_error(forward, vocabulary, model.device)
    except Exception as error:  # whatever a model makes of inputs it does not know
        return f"its forward fails on them: {error}"
