"""How llama.cpp lays a model out in a GGUF file: tensor names, order of rows, hyperparameters."""

from __future__ import annotations

import math
from typing import Any

import gguf
import torch
from torch import Tensor

from peft_lightning.messages import UserError

# model_type of transformers -> llama.cpp's architecture
ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}


class Layout:
    """The layout of one model.

    Args:
        config: The model's.

    Raises:
        UserError: If the architecture, or something that its config sets, is not known here.
    """

    def __init__(self, config: Any) -> None:
        if config.model_type not in ARCHITECTURES:
            raise UserError(
                f"no GGUF file can be written here for a {config.model_type} model, only for "
                f"{', '.join(ARCHITECTURES)}: merge the adapter, and convert the merged folder "
                "with llama.cpp's convert_hf_to_gguf.py"
            )
        if config.hidden_act != "silu":
            raise UserError(f"llama.cpp has no {config.model_type} with {config.hidden_act}")
        self.config = config
        self.architecture = ARCHITECTURES[config.model_type]
        self._names = gguf.get_tensor_name_map(self.architecture, config.num_hidden_layers)

    @property
    def name(self) -> str:
        """What llama.cpp calls the architecture."""
        return gguf.MODEL_ARCH_NAMES[self.architecture]

    @property
    def head_dim(self) -> int:
        config = self.config
        own = getattr(config, "head_dim", None)
        return own or config.hidden_size // config.num_attention_heads

    @property
    def context_length(self) -> int:
        """Positions that llama.cpp may use: it knows no sliding window in these architectures."""
        longest, window = self.config.max_position_embeddings, self._window()
        return min(longest, window or longest)

    def tensor_name(self, name: str) -> str:
        """Return the name in the file of the parameter ``name``.

        Raises:
            UserError: If the file has no place for it.
        """
        found = self._names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UserError(f"a GGUF file of architecture {self.name} has no tensor for {name}")
        return str(found)

    def ordered(self, name: str, tensor: Tensor) -> Tensor:
        """Return ``tensor`` with its rows in llama.cpp's order.

        In its llama, row pairs (0, 1), (2, 3) ... of a head are rotated together, and in
        transformers' rows i and i + d/2.

        Args:
            name: Of the parameter, or of the layer if it is an update's B.
            tensor: (out, ...).
        """
        heads = {
            "q_proj": self.config.num_attention_heads,
            "k_proj": self.config.num_key_value_heads,
        }
        leaf = name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
        if self.architecture != gguf.MODEL_ARCH.LLAMA or leaf not in heads:
            return tensor
        halves = tensor.unflatten(0, (heads[leaf], 2, -1))  # (heads, half, d/2, ...)
        return halves.transpose(1, 2).flatten(0, 2)

    def add_parameters(self, writer: gguf.GGUFWriter) -> None:
        """Add the hyperparameters.

        Raises:
            UserError: If the rotary embedding is of a kind that is not known here.
        """
        config = self.config
        writer.add_vocab_size(config.vocab_size)
        writer.add_context_length(self.context_length)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_key_length(self.head_dim)
        writer.add_value_length(self.head_dim)
        writer.add_rope_dimension_count(self.head_dim)
        rope = config.rope_parameters
        writer.add_rope_freq_base(rope["rope_theta"])
        match kind := rope.get("rope_type", "default"):
            case "default" | "llama3":
                pass  # the latter is a tensor
            case "linear":
                writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
                writer.add_rope_scaling_factor(rope["factor"])
            case "yarn":
                writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
                writer.add_rope_scaling_factor(rope["factor"])
                original = rope.get("original_max_position_embeddings")
                writer.add_rope_scaling_orig_ctx_len(original or config.max_position_embeddings)
            case _:
                raise UserError(f"no GGUF file can be written here with rope_type {kind}")

    def extra_tensors(self) -> dict[str, Tensor]:
        """Return the tensors that the model computes from its config."""
        rope = self.config.rope_parameters
        if rope.get("rope_type") != "llama3":
            return {}
        return {"rope_freqs.weight": _llama3_divisors(rope, self.head_dim)}

    def unread(self, config: Any) -> str | None:
        """Return what transformers takes otherwise in a file of this layout, if anything.

        Args:
            config: As transformers reads it from the file.
        """
        for name in ("head_dim", "attention_bias", "mlp_bias"):
            own, found = getattr(self.config, name, None), getattr(config, name, None)
            if own != found and (own or found):
                return f"{name} as {found}, and it is {own}"
        own, found = self.config.rope_parameters, config.rope_parameters
        kinds = [rope.get("rope_type", "default") for rope in (own, found)]
        return None if kinds[0] == kinds[1] else f"rope_type as {kinds[1]}, and it is {kinds[0]}"

    def _window(self) -> int | None:
        return getattr(self.config, "sliding_window", None)


def _llama3_divisors(rope: dict[str, Any], head_dim: int) -> Tensor:
    """Return what Llama 3.1 divides each rotary frequency by, (d/2,) float32.

    Waves longer than the original context over ``low_freq_factor`` are slowed down by ``factor``,
    those shorter than it over ``high_freq_factor`` are kept, and between them it goes linearly.
    """
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    waves = 2 * math.pi * rope["rope_theta"] ** exponents
    turns = rope["original_max_position_embeddings"] / waves
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 / (kept + (1 - kept) / rope["factor"])).float()
