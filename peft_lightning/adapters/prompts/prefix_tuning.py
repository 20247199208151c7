"""Prefix tuning: trained keys and values before the text (Li and Liang 2021, arXiv:2101.00190)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from peft_lightning.adapters.prompts.base import HF_DEFAULTS, PromptLearning
from peft_lightning.kernels.native.stored import output_dtype
from peft_lightning.messages import UserError

_SHAPE = "_prefix_shape"  # attribute of a model: layers, key and value heads, their dimension


@dataclass(frozen=True)
class PrefixTuning(PromptLearning):
    """Trains on the keys and values of a folder that HF PEFT's prefix tuning wrote.

    Every layer has its own keys and values, at positions 0 to n - 1; the text has the positions
    after them. If an encoder was trained, the folder holds its output, and training continues
    from that.

    Args:
        num_virtual_tokens: Number of virtual tokens, at least 1.
        prefix_projection: Whether they are the output of an encoder. This and the next two
            options are kept for HF PEFT and have no effect.
        encoder_hidden_size: The encoder's hidden size.
        init_weights: Initial values: ``zero``, or random if None.
    """

    peft_type: ClassVar[str] = "PREFIX_TUNING"
    learning_rate: ClassVar[float] = 1e-2
    uses_kv_cache: ClassVar[bool] = True
    hf_defaults: ClassVar[dict[str, Any]] = {
        **HF_DEFAULTS,
        "peft_type": "PREFIX_TUNING",
        "prefix_projection": False,
        "encoder_hidden_size": None,
        "init_weights": None,
    }

    prefix_projection: bool = False
    encoder_hidden_size: int | None = None
    init_weights: str | None = None

    def prepare_inputs(self, model: Any, batch: dict[str, Any]) -> dict[str, Any]:
        """Add ``past_key_values``, and the virtual tokens to the positions and the mask.

        Takes flat batches, whose sequences all see the one prefix, and padded ones.
        """
        inputs, ids, n = dict(batch), batch["input_ids"], self.num_virtual_tokens
        inputs["past_key_values"] = self._cache(model, len(ids))
        if "cu_seq_lens" not in batch:
            mask = batch.get("attention_mask")
            mask = torch.ones_like(ids) if mask is None else mask
            inputs["attention_mask"] = torch.cat([mask.new_ones(len(ids), n), mask], dim=1)
        if batch.get("position_ids") is not None:
            inputs["position_ids"] = batch["position_ids"] + n
        return inputs

    def is_padding_sensitive(self, model: Any) -> bool:
        # a window counts padding too, which would push the prefix out of it
        return getattr(model.config.get_text_config(), "sliding_window", None) is not None

    def hf_config(self, model: Any) -> dict[str, Any]:
        layers, heads, dim = getattr(model, _SHAPE)
        shape = {"num_layers": layers, "num_attention_heads": heads, "token_dim": heads * dim}
        return {**super().hf_config(model), **shape}

    def _insert(self, model: Any, initialise: bool) -> None:
        if initialise:
            raise self._no_encoder_error()
        layers, heads, dim = shape = _key_shape(model)
        self._register(model, torch.zeros(self.num_virtual_tokens, layers * 2 * heads * dim))
        setattr(model, _SHAPE, shape)

    def _remove(self, model: nn.Module) -> None:
        super()._remove(model)
        delattr(model, _SHAPE)

    def _cache(self, model: Any, rows: int) -> Any:
        """Return a cache that holds the prefix for each of ``rows`` rows."""
        from transformers import DynamicCache  # only here: the rest needs torch alone

        layers, heads, dim = getattr(model, _SHAPE)
        prompt = model.prompt_embeddings
        kind, dtype = prompt.device.type, output_dtype(model.get_input_embeddings())
        autocast = torch.is_autocast_enabled(kind)
        prompt = prompt.to(torch.get_autocast_dtype(kind) if autocast else dtype)
        parts = prompt.view(self.num_virtual_tokens, layers, 2, heads, dim)  # HF PEFT's order
        parts = parts.permute(1, 2, 3, 0, 4)[:, :, None].expand(-1, -1, rows, -1, -1, -1)
        return DynamicCache([(key, value) for key, value in parts])


def _key_shape(model: Any) -> tuple[int, int, int]:
    """Return the layers of a model, their key and value heads and the dimension of these.

    Found by a look at the cache that the model fills, as configurations name them in many ways.

    Raises:
        UserError: If a layer has no keys and values, or others than the next.
    """
    from transformers import DynamicCache

    cache = DynamicCache()
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    with torch.no_grad():
        model(input_ids=token, past_key_values=cache, use_cache=True)
    held = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    shapes = {None if x is None else (x.shape[1], x.shape[3]) for x in held}
    if len(cache.layers) != model.config.get_text_config().num_hidden_layers or len(shapes) != 1:
        raise UserError(
            f"PrefixTuning needs the same heads of keys and values in every layer, and "
            f"{type(model).__name__} does not have that: use PromptTuning"
        )
    heads, dim = shapes.pop()  # type: ignore[misc]
    return len(cache.layers), heads, dim
