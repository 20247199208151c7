"""Tiny bases of the architectures that a GGUF file is written for, and random LoRAs on them."""

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    SmolLM3Config,
    Starcoder2Config,
)

from parity import randomise
from peft_lightning.adapters import Adapter, save_adapter
from peft_lightning.base_model import base_fingerprint, load_base_model
from tiny_gguf import digit_tokenizer

SIZE = len(digit_tokenizer())
HEADS = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
IDS = {"vocab_size": SIZE, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
PLAIN = {**HEADS, **IDS, "intermediate_size": 48, "max_position_embeddings": 256}
GQA = {**PLAIN, "num_key_value_heads": 2}
FALCON = {**HEADS, **IDS, "max_position_embeddings": 256}
GEMMA = {**GQA, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}
LONG = {"rope_type": "longrope", "rope_theta": 1e4}
LONG |= {"long_factor": [1.0, 1.5, 2.0, 4.0], "short_factor": [1.0, 1.1, 1.2, 1.3]}
SCALES = {"attention_multiplier": 0.3, "embedding_multiplier": 2.0}
SCALES |= {"residual_multiplier": 0.5, "logits_scaling": 3.0}

CONFIGS: dict[str, PreTrainedConfig] = {
    "gemma2": Gemma2Config(**GEMMA),
    "gemma3": Gemma3TextConfig(**GEMMA, layer_types=["sliding_attention", "full_attention"] * 2),
    "phi3": Phi3Config(**GQA, original_max_position_embeddings=256),
    "phi3-longrope": Phi3Config(
        **{**GQA, "max_position_embeddings": 1024},
        original_max_position_embeddings=256,
        rope_parameters=LONG,
    ),
    "gpt2": GPT2Config(n_embd=32, n_layer=4, n_head=4, n_positions=256, **IDS),
    "gpt_neox": GPTNeoXConfig(**PLAIN),
    "gpt_neox-sequential": GPTNeoXConfig(**PLAIN, use_parallel_residual=False),
    "falcon": FalconConfig(**FALCON),
    "falcon-40b": FalconConfig(**FALCON, num_kv_heads=2, new_decoder_architecture=True),
    "falcon-rw": FalconConfig(**FALCON, multi_query=False),
    "starcoder2": Starcoder2Config(**GQA),
    "olmo2": Olmo2Config(**GQA),
    "olmo2-tied": Olmo2Config(**GQA, tie_word_embeddings=True),
    "granite": GraniteConfig(**GQA, **SCALES),
    "smollm3": SmolLM3Config(**GQA),
}
READ_BY_TRANSFORMERS = ("phi3", "starcoder2")


def write_base(folder: Path, config: PreTrainedConfig) -> Path:
    """Write a random model and the digit tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, std=0.2)
            adds_one = "gemma" in config.model_type or not name.endswith("weight")
            parameter.data += float(parameter.ndim == 1 and not adds_one)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    digit_tokenizer().save_pretrained(folder)
    return folder


def write_adapter(base: Path, folder: Path, adapter: Adapter) -> Path:
    """Save a random adapter over ``base``."""
    model = load_base_model(str(base), frozen=False)
    facts = {"base_fingerprint": base_fingerprint(model)}
    adapter.attach(model)
    randomise(adapter.state_dict(model))
    for tensor in adapter.state_dict(model).values():
        tensor.mul_(0.7)
    save_adapter(adapter, model, folder, facts, digit_tokenizer())
    return folder
