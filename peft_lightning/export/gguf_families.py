"""The architectures that a GGUF file is written for: Gemma's and GPT's kind beside Llama's."""

from __future__ import annotations

from typing import Any, ClassVar

import gguf
import torch
from torch import Tensor

from peft_lightning.export import gguf_architectures as of_llamas_kind
from peft_lightning.export.gguf_architectures import Architecture

GELU = ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast")  # one function there, that of tanh


class Gemma2(Architecture):
    """Gemma 2: every second layer has a window, and logits and scores are capped."""

    arch, activations, needs_tied_head = gguf.MODEL_ARCH.GEMMA2, ("gelu_pytorch_tanh",), True
    needs: ClassVar = {"attention_bias": False}
    every = 2  # layers, the last of which has no window
    largest = 46  # layers of the 27B, whose scores llama.cpp scales otherwise
    caps: ClassVar = {"attn_logit_softcapping": True, "final_logit_softcapping": True}

    @property
    def window(self) -> int | None:
        return None  # it has them, layer by layer

    def problem(self) -> str | None:
        config, scaled = self.config, self.head_dim
        if config.num_hidden_layers == self.largest:
            scaled = config.hidden_size // config.num_attention_heads
        if config.query_pre_attn_scalar != scaled:
            return f"query_pre_attn_scalar {config.query_pre_attn_scalar}"
        for name, is_capped in self.caps.items():
            if (getattr(config, name) is not None) != is_capped:
                return f"{name} {getattr(config, name)}"
        return super().problem()

    def add(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        if config.attn_logit_softcapping:
            writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        if config.final_logit_softcapping:
            writer.add_final_logit_softcapping(config.final_logit_softcapping)
        writer.add_sliding_window(config.sliding_window)
        local = [kind == "sliding_attention" for kind in config.layer_types]
        if local != [(i + 1) % self.every != 0 for i in range(len(local))]:
            writer.add_sliding_window_pattern(local)
        if base := config.rope_parameters.get("sliding_attention", {}).get("rope_theta"):
            writer.add_rope_freq_base_swa(base)

    def offset(self, name: str) -> float:
        return float(name.endswith("norm.weight"))


class Gemma3(Gemma2):
    """Gemma 3: every sixth layer has no window, and a rotary embedding of its own."""

    arch, needs_tied_head, every, largest = gguf.MODEL_ARCH.GEMMA3, False, 6, 62
    caps: ClassVar = {"attn_logit_softcapping": False}


class Starcoder2(Architecture):
    """StarCoder 2: layer norms, and a feed-forward part without a gate."""

    arch, activations, eps = gguf.MODEL_ARCH.STARCODER2, GELU, "norm_epsilon"
    transformers_reads_it = True
    needs: ClassVar = {"use_bias": True}


class GPT2(Architecture):
    """GPT-2: weights are (in, out), and positions have embeddings."""

    arch, activations, eps = gguf.MODEL_ARCH.GPT2, GELU, "layer_norm_epsilon"
    needs: ClassVar[dict[str, Any]] = {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    }

    @property
    def feed_forward(self) -> int:
        return int(self.config.n_inner or 4 * self.config.n_embd)

    def is_transposed(self, name: str) -> bool:
        return name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


class GPTNeoX(Architecture):
    """GPT-NeoX: queries, keys and values are one matrix, head by head."""

    arch, activations, eps = gguf.MODEL_ARCH.GPTNEOX, GELU, "layer_norm_eps"
    needs: ClassVar = {"attention_bias": True}
    has_own_head = True

    def add(self, writer: gguf.GGUFWriter) -> None:
        writer.add_parallel_residual(self.config.use_parallel_residual)

    def rows(self, leaf: str, tensor: Tensor) -> Tensor:
        if leaf != "query_key_value":
            return tensor
        parts = tensor.unflatten(0, (self.config.num_attention_heads, 3, -1))
        return parts.transpose(0, 1).flatten(0, 2)  # (3, heads, d, ...)


class Falcon(Architecture):
    """Falcon: as GPT-NeoX, but queries that share keys and values are together."""

    arch, activations, eps = gguf.MODEL_ARCH.FALCON, GELU, "layer_norm_epsilon"
    needs: ClassVar = {"alibi": False, "parallel_attn": True, "bias": False}

    @property
    def feed_forward(self) -> int:
        return int(self.config.ffn_hidden_size)

    @property
    def kv_heads(self) -> int:
        if self.config.new_decoder_architecture:
            return int(self.config.num_kv_heads)
        return 1 if self.config.multi_query else int(self.config.num_attention_heads)

    def add(self, writer: gguf.GGUFWriter) -> None:
        writer.add_tensor_data_layout("jploski")  # what it calls the order of the rows below

    def rows(self, leaf: str, tensor: Tensor) -> Tensor:
        if leaf != "query_key_value":
            return tensor
        groups = tensor.unflatten(0, (self.kv_heads, -1, self.head_dim))
        parts = (groups[:, :-2], groups[:, -2:-1], groups[:, -1:])  # queries, keys, values
        return torch.cat([part.flatten(0, 2) for part in parts])


ARCHITECTURES: dict[str, type[Architecture]] = {  # by the model_type of transformers
    "llama": of_llamas_kind.Llama,
    "mistral": of_llamas_kind.Llama,
    "qwen2": of_llamas_kind.Qwen2,
    "qwen3": of_llamas_kind.Qwen3,
    "smollm3": of_llamas_kind.SmolLM3,
    "granite": of_llamas_kind.Granite,
    "olmo2": of_llamas_kind.Olmo2,
    "phi3": of_llamas_kind.Phi3,
    "gemma2": Gemma2,
    "gemma3_text": Gemma3,
    "starcoder2": Starcoder2,
    "gpt2": GPT2,
    "gpt_neox": GPTNeoX,
    "falcon": Falcon,
}
