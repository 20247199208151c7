"""PromptLearning: what prompt tuning, p-tuning and prefix tuning have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from peft_lightning.adapters.base import _ATTACHED, HF_COMMON, Adapter, adapter_dtype
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


@dataclass(frozen=True)
class PromptLearning(Adapter):
    """Trains one tensor, ``prompt_embeddings``, with a row for each virtual token.

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
        return self, tensors

    def tensors(self, model: Any) -> dict[str, Tensor]:
        return {"prompt_embeddings": model.prompt_embeddings}

    def hf_config(self, model: Any) -> dict[str, Any]:
        base = model.config.get_text_config()
        options = {
            **self.options(),
            "base_model_name_or_path": getattr(model, "name_or_path", None) or None,
            # HF PEFT refuses a folder without them, and prompts of input embeddings use neither
            "num_attention_heads": getattr(base, "num_attention_heads", None) or 1,
            "num_layers": getattr(base, "num_hidden_layers", None) or 1,
            "num_transformer_submodules": 1,
            "token_dim": model.prompt_embeddings.shape[1],
        }
        return {**self.hf_defaults, **options}

    @classmethod
    def from_hf_config(cls, config: Mapping[str, Any]) -> Self:
        plain = {**config}
        if plain.get("num_transformer_submodules") in (None, 1):
            plain.pop("num_transformer_submodules", None)
        return super().from_hf_config(plain)

    def _register(self, model: Any, prompt: Tensor) -> None:
        """Freeze ``model`` and register ``prompt``, (n, any), as its trainable parameter."""
        weight = model.get_input_embeddings().weight
        model.requires_grad_(False)
        prompt = prompt.to(weight.device, adapter_dtype(weight.dtype), copy=True)
        model.register_parameter("prompt_embeddings", nn.Parameter(prompt))

    def _remove(self, model: nn.Module) -> None:
        del model.prompt_embeddings

    def disable(self, model: nn.Module) -> None:
        """Leave the parameter where it is: the model does not read it, only its inputs do."""
        self._require_attached(model)
        delattr(model, _ATTACHED)

    def _no_encoder_error(self) -> UserError:
        """Return the error of a method whose encoder, which is not in a folder, would be needed."""
        return UserError(
            f"{type(self).__name__} cannot be trained from nothing: its folder holds what HF "
            "PEFT's encoder made, not the encoder. Train on from such a folder with "
            "model.init_from (in Python: load_adapter with trainable=True), or start a "
            "PromptTuning"
        )
