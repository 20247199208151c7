"""Prefix tuning: trained keys and values before the text (Li and Liang 2021, arXiv:2101.00190)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_lightning.adapters.prompts.base import HF_DEFAULTS, TRAINS, PromptLearning
from peft_lightning.adapters.prompts.encoders import prefix_encoder, virtual_tokens
from peft_lightning.adapters.prompts.init_text import text_ids, tokenizer_path
from peft_lightning.kernels.native.stored import output_dtype
from peft_lightning.messages import UserError

_SAMPLE = 128  # tokens, spread over the vocabulary, whose keys and values are looked at
_SHAPE = "_prefix_shape"  # attribute of a model: layers, key and value heads, their dimension


@dataclass(frozen=True)
class PrefixTuning(PromptLearning):
    """Puts trained keys and values before the text, in every layer.

    They have positions 0 to n - 1, the text those after them. With ``init_text`` they begin as the
    keys and values of a text, and the model as one that has read it. With ``prefix_projection`` an
    encoder makes them; what is saved are they, as HF PEFT reads them, and the encoder, from which
    training goes on. A folder of HF PEFT has no encoder: they themselves are trained there.

    Args:
        num_virtual_tokens: Number of virtual tokens, at least 1.
        prefix_projection: Whether an encoder of two linear layers makes the keys and values.
        encoder_hidden_size: Its hidden size; None for the width of a layer's keys.
        init_weights: Initial values: ``zero``, or None for random ones of the size that the base's
            own keys and values have.
        init_text: A text whose keys and values they begin as, cut or repeated to length; not with
            an encoder.
        tokenizer_name_or_path: Its tokenizer; the base model's own if None.
        trains_encoder: Whether the encoder is trained, if there is one, or what it has made.

    Raises:
        UserError: If options contradict each other.
    """

    peft_type: ClassVar[str] = "PREFIX_TUNING"
    learning_rate: ClassVar[float] = 5e-3
    uses_kv_cache: ClassVar[bool] = True
    hf_defaults: ClassVar[dict[str, Any]] = {
        **HF_DEFAULTS,
        "peft_type": "PREFIX_TUNING",
        "prefix_projection": False,
        "encoder_hidden_size": None,
        "init_weights": None,
    }

    own_options: ClassVar[frozenset[str]] = frozenset(
        {"init_text", "tokenizer_name_or_path", TRAINS}
    )

    prefix_projection: bool = False
    encoder_hidden_size: int | None = None
    init_weights: str | None = None
    init_text: str | None = None
    tokenizer_name_or_path: str | None = None
    trains_encoder: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.init_weights in (None, "zero"), "init_weights", "zero, or left out")
        size = self.encoder_hidden_size
        self._require(size is None or size >= 1, "encoder_hidden_size", "at least 1")
        if self.init_text is None:
            if self.tokenizer_name_or_path is not None:
                raise UserError("tokenizer_name_or_path is that of init_text: give a text, too")
        elif self.prefix_projection or self.init_weights is not None:
            other = "prefix_projection" if self.prefix_projection else "init_weights"
            raise UserError(f"init_text sets the keys and values themselves: leave out {other}")

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
        hidden = self.encoder_hidden_size or heads * dim
        return {**super().hf_config(model), **shape, "encoder_hidden_size": hidden}

    def _insert(self, model: Any, initialise: bool) -> None:
        layers, heads, dim = shape = _key_shape(model)
        rows, width, out = self.num_virtual_tokens, heads * dim, layers * 2 * heads * dim
        if self.prefix_projection and self.trains_encoder:
            hidden, zero = self.encoder_hidden_size or width, self.init_weights is not None
            encoder = partial(prefix_encoder, rows, width, hidden, out, zero)
            self._register_encoder(model, encoder, initialise)
        elif initialise and self.init_weights is None:
            self._register(model, self._initial(model))
        else:
            self._register(model, torch.zeros(rows, out))
        setattr(model, _SHAPE, shape)

    def _initial(self, model: Any) -> Tensor:
        """Return the keys and values of a text, or random ones of their size, (n, any)."""
        n = self.num_virtual_tokens
        if self.init_text is not None:
            path = tokenizer_path(model, self.tokenizer_name_or_path, "init_text")
            ids = text_ids(self.init_text, n, path, "init_text")
            return _keys_and_values(model, torch.tensor([ids]))[0]
        vocabulary = model.get_input_embeddings().weight.shape[0]
        spread = torch.linspace(0, vocabulary - 1, min(vocabulary, _SAMPLE)).long()
        found = _keys_and_values(model, spread[:, None])[:, 0].cpu().float()
        # drawn on the CPU, so that a seed gives the same prefix on every device
        return found.mean(dim=0) + torch.randn(n, found.shape[1]) * found.std(dim=0)

    def _remove(self, model: nn.Module) -> None:
        super()._remove(model)
        delattr(model, _SHAPE)

    def _cache(self, model: Any, rows: int) -> Any:
        """Return a cache that holds the prefix for each of ``rows`` rows."""
        from transformers import DynamicCache  # only here: the rest needs torch alone

        layers, heads, dim = getattr(model, _SHAPE)
        prompt = virtual_tokens(model)
        kind, dtype = prompt.device.type, output_dtype(model.get_input_embeddings())
        autocast = torch.is_autocast_enabled(kind)
        prompt = prompt.to(torch.get_autocast_dtype(kind) if autocast else dtype)
        parts = prompt.view(self.num_virtual_tokens, layers, 2, heads, dim)  # HF PEFT's order
        parts = parts.permute(1, 2, 3, 0, 4)[:, :, None].expand(-1, -1, rows, -1, -1, -1)
        return DynamicCache([(key, value) for key, value in parts])


@torch.no_grad()
def _keys_and_values(model: Any, ids: Tensor) -> Tensor:
    """Return the keys and values that the base has for ``ids``, (B, T), as (B, T, any)."""
    from transformers import DynamicCache

    cache: Any = DynamicCache()
    model(input_ids=ids.to(model.device), past_key_values=cache, use_cache=True)
    held = [part for layer in cache.layers for part in (layer.keys, layer.values)]
    stacked = torch.stack(held)  # (layers * 2, B, heads, T, dim)
    return stacked.permute(1, 3, 0, 2, 4).flatten(2)


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
