"""PromptLearning: what prompt tuning, p-tuning and prefix tuning have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from peft_lightning.adapters.base import _ATTACHED, HF_COMMON, Adapter, adapter_dtype
from peft_lightning.adapters.prompts.encoders import (
    ENCODER,
    has_encoder,
    names_of,
    tensors_of,
    token_width,
)
from peft_lightning.messages import UserError

HF_DEFAULTS: dict[str, Any] = {  # HF PEFT's keys that the three share
    **HF_COMMON,
    "modules_to_save": None,
    "num_attention_heads": None,
    "num_layers": None,
    "num_transformer_submodules": None,
    "num_virtual_tokens": None,
    "token_dim": None,
}

TRAINS = "trains_encoder"  # the field that says so


@dataclass(frozen=True)
class PromptLearning(Adapter):
    """Trains ``prompt_embeddings``, with a row for each virtual token, or an encoder of them.

    Args:
        num_virtual_tokens: Number of virtual tokens, at least 1.

    Raises:
        UserError: If ``num_virtual_tokens`` is out of its range.
    """

    # facts of the base, which the tensor's shape is checked against anyway
    hf_ignored: ClassVar[frozenset[str]] = Adapter.hf_ignored | {
        "num_attention_heads",
        "num_layers",
        "token_dim",
    }

    num_virtual_tokens: int = 16

    def __post_init__(self) -> None:
        n = self.num_virtual_tokens
        self._require(
            type(n) is int and n >= 1, "num_virtual_tokens", "a whole number of at least 1"
        )

    def resolved_for(
        self, model: nn.Module, tensors: Mapping[str, Tensor]
    ) -> tuple[PromptLearning, Mapping[str, Tensor]]:
        shape = tuple(tensors["prompt_embeddings"].shape) if "prompt_embeddings" in tensors else ()
        if shape[:1] != (self.num_virtual_tokens,):  # before as much memory is asked for
            raise UserError(
                f"the config has {self.num_virtual_tokens} virtual tokens, and the file's "
                f"prompt_embeddings {shape or 'are not there'}"
            )
        if getattr(self, TRAINS, None) not in (None, has_encoder(tensors)):
            return replace(self, **{TRAINS: has_encoder(tensors)}), tensors
        return self, tensors

    def tensors(self, model: Any) -> dict[str, Tensor]:
        return tensors_of(model)

    def tensor_names(self, model: Any) -> set[str]:
        return names_of(model)

    def hf_config(self, model: Any) -> dict[str, Any]:
        base = model.config.get_text_config()
        options = {
            **self.hf_options(),
            "base_model_name_or_path": getattr(model, "name_or_path", None) or None,
            # HF PEFT refuses a folder without them, and prompts of input embeddings use neither
            "num_attention_heads": _number(base, "num_attention_heads"),
            "num_layers": _number(base, "num_hidden_layers"),
            "num_transformer_submodules": 1,
            "token_dim": token_width(model),
        }
        return {**self.hf_defaults, **options}

    @classmethod
    def from_hf_config(cls, config: Mapping[str, Any]) -> Self:
        # a folder of HF PEFT has no encoder
        plain = {**({TRAINS: False} if TRAINS in cls.own_options else {}), **config}
        if plain.get("num_transformer_submodules") in (None, 1):
            plain.pop("num_transformer_submodules", None)
        return super().from_hf_config(plain)

    def _register(self, model: Any, prompt: Tensor) -> None:
        """Freeze ``model`` and register ``prompt``, (n, any), as its trainable parameter."""
        weight = model.get_input_embeddings().weight
        model.requires_grad_(False)
        prompt = prompt.to(weight.device, adapter_dtype(weight.dtype), copy=True)
        model.register_parameter("prompt_embeddings", nn.Parameter(prompt))

    def _register_encoder(
        self, model: Any, make: Callable[[], nn.Module], initialise: bool
    ) -> None:
        """Freeze ``model`` and register an encoder of its virtual tokens, zero if it is loaded."""
        weight = model.get_input_embeddings().weight
        model.requires_grad_(False)
        if initialise:
            encoder = make()
        else:
            with torch.random.fork_rng(devices=[]):  # no draw: its parameters are loaded next
                encoder = make()
            for parameter in encoder.parameters():
                nn.init.zeros_(parameter)
        encoder.to(weight.device, adapter_dtype(weight.dtype))
        model.add_module(ENCODER, encoder)

    def _remove(self, model: nn.Module) -> None:
        delattr(model, ENCODER if hasattr(model, ENCODER) else "prompt_embeddings")

    def disable(self, model: nn.Module) -> None:
        """Leave the parameter where it is: the model does not read it, only its inputs do."""
        self._require_attached(model)
        delattr(model, _ATTACHED)


def _number(config: Any, name: str) -> int:
    """Return a number of a model's config; 1 if there is none, or another one in each layer."""
    try:
        return getattr(config, name, None) or 1
    except Exception:  # transformers' own, of a config whose layers differ
        return 1
