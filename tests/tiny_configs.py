"""A tiny config of every causal language model class of transformers, made by rule."""

from __future__ import annotations

import re
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

VOCABULARY, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, WINDOW, POSITIONS = 264, 32, 4, 2, 8, 8, 256

# What a field means is told by its name. The first rule that matches a whole name decides.
RULES: dict[str, int] = {
    r"vocab_size|decoder_vocab_size|unpadded_vocab_size|vocab_size_per_layer_input": VOCABULARY,
    r"qk_head_dim": 2 * HEAD_DIM,
    r"(rotary_dim|index_head_dim|qk_\w+_head_dim|v_head_dim|(\w+_)?head_dim|attention_head_size"
    r"|d_head|mamba_d_head|dim_head|kv_channels|mamba_headdim|qk_rope_head_dim)": HEAD_DIM,
    r"(n|max)_(position|source_position|target_position)s?": POSITIONS,
    r"max_position_embeddings|n_ctx|max_seq_len|context_length|model_max_length": POSITIONS,
    r"original_max_position_embeddings": POSITIONS,
    r"(num_|n_)?(hidden_|decoder_|encoder_)?(layers?|blocks)|num_layers_per_stack": 2,
    r"(encoder|decoder)_layers|num_(encoder|decoder)_layers": 2,
    r"(\w+_)?(key_value_heads|kv_heads)|num_query_groups": KV_HEADS,
    r"mamba_n_heads|mamba_num_heads|n_mamba_heads": 8,
    r"linear_num_key_heads": 2,
    r"(\w+_)?(heads?|n_head|num_heads|index_n_heads)": HEADS,
    r"moe_\w*intermediate_size|shared_\w+_size|expert_ffn_hidden_size": 24,
    r"(\w+_)?(intermediate_size\w*|ffn_dim|ffn_hidden_size|dim_ff|dff|d_inner|n_inner)": 48,
    r"feed_forward_size": 48,
    r"hidden_size_per_layer_input|(\w+_)?rank|d_rel|d_state|mamba_d_state|\w*state_size": HEAD_DIM,
    r"(\w+_)?(hidden_size|embed_dim|embedding_size|embedding_dim|embeds?_dim)": HIDDEN,
    r"hidden_size_global|adapter_(in|out)_dim|adapter_input_size": HIDDEN,
    r"encoder_hash_byte_group_vocab": 64,
    r"d_model|n_embd|dim|lru_width|emb_dim|word_embed_proj_dim|dim_model_base": HIDDEN,
    r"(\w+_)?(num_experts|num_local_experts|n_routed_experts)|zero_expert_num": 4,
    r"num_experts_per_tok(en)?|moe_topk|moe_k|moe_top_k": 2,
    r"n_group|num_expert_group": 2,
    r"topk_group": 1,
    r"(\w+_)?(window|window_size|sliding_window\w*|window_len|chunk_size|block_size)": WINDOW,
    r"local_attention|(local_attn|lsh_attn)_chunk_length|index_topk|rel_extent": WINDOW,
    r"first_k_dense_replace": 1,
    r"attn_layer_offset|moe_layer_start_index": 1,
    r"(\w+_)?(period|interval|_window_pattern|every_n_layers|layer_group_size)": 2,
    r"time_step_rank|mamba_dt_rank": 4,
    r"mamba_d_ssm": 64,
    r"n_groups": 2,
    r"mem_len|prompt_length|num_buckets|(\w+_)?max_distance|num_random_blocks": WINDOW,
    r"max_window_layers": 1,
    r"num_kv_shared_layers": 0,
    r"moe_layer_end_index": 1,
}

# What no rule can tell: sizes that a class demands of each other.
SPECIAL: dict[str, dict[str, Any]] = {
    "axk1": {"n_routed_experts": 8},
    "bailing_hybrid": {"n_routed_experts": 8, "num_experts": 8},
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0}
            for kind in ("full_attention", "sliding_attention")
        },
    },
    "deepseek_v2": {"n_routed_experts": 4, "num_experts_per_tok": 2},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "deepseek_v3": {"n_routed_experts": 8},
    "deepseek_v32": {"n_routed_experts": 8},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hrm_text": {"num_hidden_layers": 16},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "axial_pos_shape": [16, 16],
        "axial_pos_embds_dim": [16, 16],
        "attn_layers": ["local", "lsh"],
        "is_decoder": True,
    },
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "qwen4_exp_text": {
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
    },
    "xlnet": {"attn_type": "uni"},
    "xlstm": {"qk_dim_factor": 1.0, "hidden_size": 64, "embedding_dim": 64},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "hybrid_layer_ids": [1, 3],
        "num_mem_blocks": 1,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "mamba_headdim": 8,
        "n_mamba_heads": 8,
    },
}


def tiny_config(model_type: str) -> PreTrainedConfig:
    """Return a config with hidden size 32, 4 heads, 2 layers or one of each kind, windows of 8."""
    cls = CONFIG_MAPPING[model_type]
    return cls(**_options(cls, model_type) | SPECIAL.get(model_type, {}))


def _options(cls: Any, model_type: str = "") -> dict[str, Any]:
    """Return the arguments of a config class that make its model small."""
    default = cls()
    fields, subs = default.to_dict(), getattr(cls, "sub_configs", None) or {}
    small: dict[str, Any] = {}
    for name, value in fields.items():
        if name in subs:
            kind = subs[name]
            given = getattr(default, name)
            if isinstance(given, PreTrainedConfig):
                small[name] = _options(type(given), given.model_type)
            elif isinstance(kind, type) and kind is not PreTrainedConfig:
                small[name] = _options(kind)
        elif re.fullmatch(r"\w+_token_(id|index)", name):
            small |= _token(name, value)
        elif type(value) is int and value > 1 and (size := _size(name)) is not None:
            small[name] = min(value, size)
            if size == KV_HEADS and "qk_rope_head_dim" in fields:
                small[name] = HEADS  # of multi-head latent attention: one for each head
        elif name == "time_step_rank":
            small[name] = 4
    if "is_decoder" in fields and not getattr(default, "is_encoder_decoder", False):
        small["is_decoder"] = True
    return small | _layers(default, fields, small)


def _token(name: str, value: Any) -> dict[str, Any]:
    """Return an id within the vocabulary: the usual ones are those of the tests' tokenizer."""
    usual = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    if name in usual:
        return {name: usual[name]}
    inside = type(value) is not int or value < VOCABULARY - 4
    return {} if inside else {name: VOCABULARY - 1 - value % 4}


def _size(name: str) -> int | None:
    return next((size for rule, size in RULES.items() if re.fullmatch(rule, name)), None)


def _layers(default: Any, fields: dict[str, Any], small: dict[str, Any]) -> dict[str, Any]:
    """Return a layer of each kind: the lists that say something of each layer, and their number."""
    count = getattr(default, "num_hidden_layers", None)
    if not isinstance(count, int):
        return {}
    lists = {
        name: list(dict.fromkeys(value))
        for name, value in fields.items()
        if isinstance(value, list)
        and len(value) == count
        and len(set(map(str, value))) < count  # else numbers of layers
        and name != "rope_parameters"
        and all(isinstance(x, int | float | str | None) for x in value)
    }
    number = max([2, *map(len, lists.values())])
    found: dict[str, Any] = {}
    for name, kinds in lists.items():
        size = _size(name)
        values = [size if size is not None and type(k) is int else k for k in kinds]
        found[name] = [values[min(i, len(values) - 1)] for i in range(number)]
    names = [n for n in small if n in ("num_hidden_layers", "n_layer", "num_layers", "n_layers")]
    return found | {name: number for name in names}
