"""Tiny models of each kind of forward that a faster way could compute otherwise."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 97
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "head_dim": 8,
}
GPT = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 128}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    **{name: SIZES[name] for name in SIZES if name not in ("num_key_value_heads", "head_dim")},
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_topk": 4,
    "index_head_dim": 16,
    "index_n_heads": 2,
}
DECODER = {
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
}
CONFIGS = {  # the kind of model: its config, and in which way flat batches are run
    "llama": (SIZES, "rows end to end"),
    "mistral": ({**SIZES, "sliding_window": 8}, "rows end to end"),
    "gemma2": ({**SIZES, "sliding_window": 8, "query_pre_attn_scalar": 8}, "rows end to end"),
    "gpt_oss": ({**SIZES, **EXPERTS, "sliding_window": 8}, "rows end to end"),
    "cohere": (SIZES, "rows end to end"),
    "granite": ({**SIZES, "logits_scaling": 3.0, "embedding_multiplier": 2.0}, "rows end to end"),
    # no mask where its attention has code of its own
    "bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 4}, "padded rows"),
    "xglm": (
        {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48},
        "padded rows",
    ),
    "bigbird_pegasus": (
        {**DECODER, "attention_type": "original_full", "max_position_embeddings": 128},
        "padded rows, its own attention",
    ),
    # an attention that is chosen when the model is built
    "falcon": (
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
        "padded rows",
    ),
    "gptj": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8}, "rows end to end"),
    "gpt_neo": (
        {**GPT, "attention_types": [[["global", "local"], 1]], "window_size": 8},
        "rows end to end",
    ),
    "mpt": ({"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128}, "padded rows"),
    "modernbert-decoder": ({**SIZES, "local_attention": 8}, "rows end to end"),
    # chunks, and keys that are chosen: of which the mask tells
    "llama4_text": (
        {**SIZES, **EXPERTS, "attention_chunk_size": 8, "intermediate_size_mlp": 48},
        "padded rows",
    ),
    "doge": (
        {**SIZES, "keep_window_size": 4},
        "one row at a time, its own attention and layers",
    ),
    "glm_moe_dsa": (LATENT, None),
    "deepseek_v32": (LATENT, None),
    # states that run on from row to row
    "rwkv": ({"hidden_size": 32, "num_hidden_layers": 2}, "padded rows"),
    "mamba": ({"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2}, "padded rows"),
    # a row's outputs depend on the longest of its batch
    "phi3": (
        {
            **{name: SIZES[name] for name in SIZES if name != "head_dim"},
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 4,
                "long_factor": [3.0] * 4,
            },
        },
        "one row at a time, its own attention and layers",
    ),
}
FLOAT32 = ("gpt_oss", "xglm")  # have operations without float64


def model_of(kind: str, **options):
    """Return a random model in eval mode, in float64 if that can be."""
    config = AutoConfig.for_model(
        kind,
        **{"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        | CONFIGS.get(kind, ({},))[0]
        | options,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.1)
            else:
                parameter.data += 0.05 * torch.randn_like(parameter)
    return model.to(torch.float32 if kind in FLOAT32 else torch.float64).eval()
