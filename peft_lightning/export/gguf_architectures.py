"""What llama.cpp computes of a decoder of Llama's kind, and what of its kin."""

from __future__ import annotations

from typing import Any, ClassVar

import gguf
from torch import Tensor


class Architecture:
    """A decoder of Llama's kind; subclasses say what differs.

    Args:
        config: The model's.
    """

    arch: gguf.MODEL_ARCH
    activations: ClassVar[tuple[str, ...]] = ("silu",)
    needs: ClassVar[dict[str, Any]] = {}  # what llama.cpp takes for granted of the config
    rotates_pairs = False  # rows (0, 1), (2, 3) ... of a head, and not i and i + d/2
    has_own_head = False  # it reads an output embedding, also if that is the input embedding
    needs_tied_head = False  # it reads none
    transformers_reads_it = False  # from a GGUF file, to the last parameter
    eps = "rms_norm_eps"

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def head_dim(self) -> int:
        """Dimension of a head."""
        own = getattr(self.config, "head_dim", None)
        return own or self.config.hidden_size // self.config.num_attention_heads

    @property
    def feed_forward(self) -> int:
        """Dimension between the two matrices of the feed-forward part."""
        return int(self.config.intermediate_size)

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        heads = self.config.num_attention_heads
        return getattr(self.config, "num_key_value_heads", None) or heads

    @property
    def rope(self) -> dict[str, Any]:
        """The rotary embedding, of layers without a window if they differ; {} if there is none."""
        found = getattr(self.config, "rope_parameters", None) or {}
        return found.get("full_attention", found)

    @property
    def window(self) -> int | None:
        """How far back the attention of its layers reaches where llama.cpp knows no window."""
        if getattr(self.config, "use_sliding_window", True) is False:
            return None
        return getattr(self.config, "sliding_window", None)

    def problem(self) -> str | None:
        """Return what the config sets and llama.cpp does not compute."""
        names = ("hidden_activation", "hidden_act", "activation_function", "activation")
        activation = next(v for v in (getattr(self.config, n, None) for n in names) if v)
        if activation not in self.activations:
            return str(activation)
        wrong = (n for n, v in self.needs.items() if getattr(self.config, n, v) != v)
        name = next(wrong, None)
        return None if name is None else f"{name} {getattr(self.config, name)}"

    def add(self, writer: gguf.GGUFWriter) -> None:
        """Add the hyperparameters that only this architecture has."""

    def rows(self, leaf: str, tensor: Tensor) -> Tensor:
        """Return a weight, a bias or a LoRA's B, (out, ...), with its rows in llama.cpp's order.

        Args:
            leaf: The last part of the layer's name.
            tensor: To order.
        """
        heads = {"q_proj": self.config.num_attention_heads, "k_proj": self.kv_heads}
        if not self.rotates_pairs or leaf not in heads:
            return tensor
        halves = tensor.unflatten(0, (heads[leaf], 2, -1))  # (heads, half, d/2, ...)
        return halves.transpose(1, 2).flatten(0, 2)

    def is_transposed(self, name: str) -> bool:
        """Whether parameter ``name`` is (in, out), and (out, in) in the file."""
        return False

    def offset(self, name: str) -> float:
        """Return what the model adds to parameter ``name``, and llama.cpp finds added."""
        return 0.0


class Llama(Architecture):
    """Llama, and Mistral."""

    arch, rotates_pairs, transformers_reads_it = gguf.MODEL_ARCH.LLAMA, True, True


class Qwen2(Architecture):
    """Qwen 2: biases, which are tensors like others."""

    arch, transformers_reads_it = gguf.MODEL_ARCH.QWEN2, True


class Qwen3(Architecture):
    """Qwen 3: queries and keys are normed."""

    arch, transformers_reads_it = gguf.MODEL_ARCH.QWEN3, True


class SmolLM3(Architecture):
    """SmolLM 3: every fourth layer has no rotary embedding."""

    arch, rotates_pairs = gguf.MODEL_ARCH.SMOLLM3, True
    needs: ClassVar = {"attention_bias": False, "mlp_bias": False}

    def problem(self) -> str | None:
        own = [int((i + 1) % 4 != 0) for i in range(self.config.num_hidden_layers)]
        if list(self.config.no_rope_layers) != own:
            return f"no_rope_layers {self.config.no_rope_layers}"
        return super().problem()


class Granite(Architecture):
    """Granite: scales of the embedding, the scores, the residual stream and the logits."""

    arch, rotates_pairs = gguf.MODEL_ARCH.GRANITE, True

    def add(self, writer: gguf.GGUFWriter) -> None:
        writer.add_attention_scale(self.config.attention_multiplier)
        writer.add_embedding_scale(self.config.embedding_multiplier)
        writer.add_residual_scale(self.config.residual_multiplier)
        writer.add_logit_scale(self.config.logits_scaling)


class Olmo2(Architecture):
    """OLMo 2: norms behind the layers, and over all heads of queries and keys."""

    arch, has_own_head = gguf.MODEL_ARCH.OLMO2, True
    needs: ClassVar = {"attention_bias": False}


class Phi3(Architecture):
    """Phi 3: queries, keys and values are one matrix, gate and up another."""

    arch, transformers_reads_it = gguf.MODEL_ARCH.PHI3, True
