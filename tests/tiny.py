"""Tiny random causal language models of eight architectures, built offline from configs."""

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

ARCHITECTURES = ["llama", "gpt2", "qwen2", "gemma3", "gpt_neox", "opt", "phi3", "mistral"]

DIM, LAYERS, HEADS, KV_HEADS, POSITIONS = 32, 2, 4, 2, 256


def tiny_config(architecture: str, vocab_size: int = 128) -> PreTrainedConfig:
    """Return the config of a model with 2 layers, dimension 32, 4 heads and 256 positions."""
    gqa = {
        "hidden_size": DIM,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": POSITIONS,
    }
    ids = {"vocab_size": vocab_size, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    match architecture:
        case "llama":
            return LlamaConfig(**gqa, **ids, tie_word_embeddings=False)
        case "qwen2":
            return Qwen2Config(**gqa, **ids, tie_word_embeddings=True)
        case "mistral":
            return MistralConfig(**gqa, **ids, sliding_window=8)
        case "phi3":
            return Phi3Config(**gqa, **ids, original_max_position_embeddings=POSITIONS)
        case "gemma3":
            kinds = ["sliding_attention", "full_attention"]
            return Gemma3TextConfig(**gqa, **ids, head_dim=8, sliding_window=8, layer_types=kinds)
        case "gpt2":
            sizes = {"n_embd": DIM, "n_layer": LAYERS, "n_head": HEADS, "n_positions": POSITIONS}
            return GPT2Config(**sizes, **ids)
        case "gpt_neox":
            sizes = {k: v for k, v in gqa.items() if k != "num_key_value_heads"}
            return GPTNeoXConfig(**sizes, **ids)
        case "opt":
            sizes = {
                "hidden_size": DIM,
                "word_embed_proj_dim": DIM,
                "ffn_dim": 48,
                "num_hidden_layers": LAYERS,
                "num_attention_heads": HEADS,
                "max_position_embeddings": POSITIONS,
            }
            return OPTConfig(**sizes, **ids)
    raise ValueError(f"no tiny {architecture!r}; there are {ARCHITECTURES}")


def tiny_model(
    architecture: str,
    dtype: torch.dtype = torch.float32,
    *,
    vocab_size: int = 128,
    seed: int = 0,
    attn_implementation: str = "sdpa",
) -> PreTrainedModel:
    """Return a random model in eval mode; equal arguments give equal weights.

    Weights are N(0, 0.2^2), ten times the usual scale, biases and norms away from 0 and 1, so that
    two models or inputs that should differ do so by far more than rounding. The caller's random
    state is left alone.
    """
    config = tiny_config(architecture, vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
            else:
                parameter.data += 0.1 * torch.randn_like(parameter)
    # eos would end a random model's generation at a random place
    model.generation_config.eos_token_id = None
    return model.to(dtype).eval()
