"""How llama.cpp lays a model out in a GGUF file: tensor names, order of rows, hyperparameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor
from transformers import AutoConfig

from peft_lightning.export.gguf_families import ARCHITECTURES
from peft_lightning.export.gguf_rope import llama3_divisors, longrope_scale
from peft_lightning.messages import UserError

_COMPARED = ("head_dim", "attention_bias", "mlp_bias", "layer_types")


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
        self.config = config
        self.architecture = ARCHITECTURES[config.model_type](config)
        if problem := self.architecture.problem():
            raise UserError(f"llama.cpp has no {config.model_type} with {problem}")
        self._names = gguf.get_tensor_name_map(self.architecture.arch, config.num_hidden_layers)

    @property
    def name(self) -> str:
        """What llama.cpp calls the architecture."""
        return gguf.MODEL_ARCH_NAMES[self.architecture.arch]

    @property
    def context_length(self) -> int:
        """Positions that llama.cpp may use, where it knows no sliding window."""
        longest, window = self.config.max_position_embeddings, self.architecture.window
        return min(longest, window or longest)

    @property
    def original_context(self) -> int:
        """Positions of the model before its rotary embedding was stretched."""
        key = "original_max_position_embeddings"
        own = self.architecture.rope.get(key) or getattr(self.config, key, None)
        return int(own or self.config.max_position_embeddings)

    def of_context(self) -> str:
        """Return what is to be said of the positions that llama.cpp may use, in lines."""
        said, longest = "", self.original_context
        if self.context_length < self.config.max_position_embeddings:
            said = (
                f"\nits context is {self.context_length} tokens: llama.cpp has no sliding window "
                "of attention for this architecture, and beyond it the two would differ"
            )
        if self.architecture.rope.get("rope_type") == "longrope":
            said += (
                "\nllama.cpp takes the factors of long texts from the first token on if its "
                f"context is above {longest}, transformers beyond that only: for shorter texts "
                f"give it -c {longest}"
            )
        return said

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

        Args:
            name: Of the parameter, or of the layer if it is an update's B.
            tensor: (out, ...).
        """
        leaf = name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
        return self.architecture.rows(leaf, tensor)

    def stored(self, name: str, tensor: Tensor) -> Tensor:
        """Return parameter ``name`` as the file holds it."""
        tensor = tensor.T if self.architecture.is_transposed(name) else tensor
        if offset := self.architecture.offset(name):
            tensor = tensor + offset
        return self.ordered(name, tensor).contiguous()

    def shape(self, name: str, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of parameter ``name`` in the file."""
        return tuple(reversed(shape) if self.architecture.is_transposed(name) else shape)

    def add_parameters(self, writer: gguf.GGUFWriter) -> None:
        """Add the hyperparameters.

        Raises:
            UserError: If the rotary embedding is of a kind that is not known here.
        """
        config, own = self.config, self.architecture
        eps = getattr(config, own.eps)
        writer.add_vocab_size(config.vocab_size)
        writer.add_context_length(self.context_length)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(own.feed_forward)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(own.kv_heads)
        (writer.add_layer_norm_rms_eps if "rms" in own.eps else writer.add_layer_norm_eps)(eps)
        writer.add_key_length(own.head_dim)
        writer.add_value_length(own.head_dim)
        if own.rope:
            self._add_rope(writer)
        own.add(writer)

    def _add_rope(self, writer: gguf.GGUFWriter) -> None:
        rope, original = self.architecture.rope, self.original_context
        longer = self.config.max_position_embeddings / original
        writer.add_rope_dimension_count(self._rotated)
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
                writer.add_rope_scaling_orig_ctx_len(original)
            case "longrope" if self.architecture.arch == gguf.MODEL_ARCH.PHI3:
                factor = rope.get("attention_factor") or longrope_scale(longer, original)
                writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
                writer.add_rope_scaling_orig_ctx_len(original)
                writer.add_rope_scaling_attn_factors(factor)
            case _:
                raise UserError(f"no GGUF file can be written here with rope_type {kind}")

    @property
    def _rotated(self) -> int:
        """Dimensions of a head that are rotated."""
        factor = self.architecture.rope.get("partial_rotary_factor") or 1.0
        return int(self.architecture.head_dim * factor)

    def extra_tensors(self) -> dict[str, Tensor]:
        """Return the tensors that the model computes from its config."""
        rope = self.architecture.rope
        match rope.get("rope_type"):
            case "llama3":
                return {"rope_freqs.weight": llama3_divisors(rope, self._rotated)}
            case "longrope":
                kinds = ("long", "short")
                return {
                    f"rope_factors_{k}.weight": torch.tensor(rope[f"{k}_factor"]) for k in kinds
                }
        return {}

    def unread_in(self, file: Path) -> str | None:
        """Return what transformers takes otherwise in a file of this layout, if anything."""
        if not self.architecture.transformers_reads_it:
            return f"transformers does not read all of a {self.config.model_type} GGUF file"
        return self.unread(AutoConfig.from_pretrained(file.parent, gguf_file=file.name))

    def unread(self, config: Any) -> str | None:
        """Return what transformers takes otherwise in a file of this layout, if anything.

        Args:
            config: As transformers reads it from the file.
        """
        for name in _COMPARED:
            own, found = getattr(self.config, name, None), getattr(config, name, None)
            if own != found and (own or found):
                return f"transformers reads {name} as {found}, and it is {own}"
        kinds = [
            rope.get("rope_type", "default")
            for rope in (self.architecture.rope, type(self.architecture)(config).rope)
        ]
        if kinds[0] != kinds[1]:
            return f"transformers reads rope_type as {kinds[1]}, and it is {kinds[0]}"
        return None
