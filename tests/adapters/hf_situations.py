"""What HF PEFT itself writes for each of its options, as ``docs/adapters.md`` prints it."""

from __future__ import annotations

from typing import Any

import torch
from peft import (
    IA3Config,
    MissConfig,
    OFTConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
)

from foreign_situations import READ, Situation

Q, HEAD, EMBEDDING = ["q_proj", "up_proj"], "lm_head", "embed_tokens"
UNTIED, TIED = ("llama",), ("qwen2",)
PROMPT: dict[str, Any] = {"num_virtual_tokens": 3}


def own(what: str, files: str, models: tuple[str, ...] = UNTIED, **config: Any) -> Situation:
    """Return the situation of a folder as HF PEFT writes it."""
    return Situation(what, READ, files, config=config, models=models)


HF_SITUATIONS = [
    own(
        "linear layers",
        "`lora_A.weight` (r, in), `lora_B.weight` (out, r), float32 over a base of any dtype",
        ("llama", "qwen2", "phi3", "gemma3"),
    ),
    own("GPT-2's `Conv1D`", "the same shapes, with `fan_in_fan_out`", ("gpt2",)),
    own(
        "`target_modules: all-linear`",
        "full names; from 20 on the ends that tell them from the rest",
        ("llama", "gpt2"),
        target_modules="all-linear",
    ),
    Situation(
        "a base in bfloat16",
        READ,
        "float32 all the same",
        base=lambda model: model.to(torch.bfloat16),
        onto=lambda model: model.to(torch.bfloat16),
        models=("llama", "gpt2"),
    ),
    own("`target_modules`, an expression", "as given", target_modules=r".*\.1\..*_proj"),
    own("`target_modules: null`", "the default names", ("llama", "gpt2"), target_modules=None),
    own("`exclude_modules`", "the layers that are left", exclude_modules=r".*\.0\..*q_proj"),
    own("`layers_to_transform`", "these layers", layers_to_transform=[1]),
    own("`layers_pattern`", "these layers", layers_to_transform=1, layers_pattern="layers"),
    own(
        "`rank_pattern`, `alpha_pattern`",
        "ranks by the tensors' shapes; the first key that matches counts",
        rank_pattern={r"0\.mlp\..*": 2, "up_proj": 6},
        alpha_pattern={"^model.layers.1.self_attn.q_proj": 3},
    ),
    own("`use_rslora`", "nothing more; the scale is `lora_alpha / sqrt(r)`", use_rslora=True),
    own("`use_dora`", "`lora_magnitude_vector` (out)", ("llama", "gpt2"), use_dora=True),
    own("`lora_bias`", "`lora_B.bias` (out)", ("llama", "gpt2"), lora_bias=True),
    own("`bias: lora_only`", "`base_layer.bias`", ("gpt2",), bias="lora_only"),
    own("`bias: all`", "every bias of the model", ("gpt2",), bias="all"),
    own(
        "an embedding in `target_modules`",
        "`lora_embedding_A` (r, V), `lora_embedding_B` (dim, r), and the base's whole weight",
        ("llama", "qwen2"),
        target_modules=[EMBEDDING, "q_proj"],
    ),
    own(
        "both embeddings in `target_modules`",
        "an update and the base's weight for each",
        ("llama", "qwen2"),
        target_modules=[EMBEDDING, HEAD],
    ),
    own(
        "an embedding in `target_modules`, `ensure_weight_tying`",
        "the output embedding's factors too, the transposes",
        TIED,
        target_modules=[EMBEDDING],
        ensure_weight_tying=True,
    ),
    own("`modules_to_save`", "`lm_head.weight`, whole", ("llama", "qwen2"), modules_to_save=[HEAD]),
    own(
        "`modules_to_save`, `ensure_weight_tying`",
        "both embeddings whole",
        TIED,
        modules_to_save=[EMBEDDING],
        ensure_weight_tying=True,
    ),
    own(
        "`trainable_token_indices`",
        "`token_adapter.trainable_tokens_delta` (n, dim): the rows, not differences",
        ("llama", "qwen2", "gemma3"),
        trainable_token_indices=[5, 3],
    ),
    own(
        "`trainable_token_indices` by name",
        "the rows of each; a tied output embedding has none of its own",
        ("llama", "qwen2"),
        trainable_token_indices={EMBEDDING: [5, 3], HEAD: [5, 3]},
    ),
    own(
        "OFT",
        "`oft_R.weight` (blocks, b (b - 1) / 2) for blocks of b inputs",
        ("llama", "qwen2"),
        method=OFTConfig,
        oft_block_size=8,
    ),
    own("MiSS", "`miss_block` (r, out)", ("llama", "qwen2"), method=MissConfig, r=4),
    own(
        "IA3",
        "`ia3_l` (out, 1), or (1, in) for `feedforward_modules`",
        ("llama", "gpt2"),
        method=IA3Config,
        target_modules=None,
    ),
    own(
        "prompt tuning",
        "`prompt_embeddings` (n, dim)",
        ("llama", "gpt2"),
        method=PromptTuningConfig,
        **PROMPT,
    ),
    own(
        "p-tuning",
        "`prompt_embeddings` (n, dim): what the encoder made, without the encoder",
        ("llama", "gpt2"),
        method=PromptEncoderConfig,
        encoder_hidden_size=8,
        **PROMPT,
    ),
    own(
        "prefix tuning",
        "`prompt_embeddings` (n, layers x 2 x key-value heads x head dim)",
        ("llama", "gpt2"),
        method=PrefixTuningConfig,
        **PROMPT,
    ),
]
