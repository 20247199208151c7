"""The tiny bases of ``read_by_transformers4.py``: configs of many architectures, tokenizers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
THETA = {"rope_theta": 500.0, "rope_type": "default"}
LLAMA3 = {
    "rope_theta": 500.0,
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_theta": 500.0,
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONG = {
    "rope_theta": 500.0,
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}
BY_LAYER = {
    "full_attention": {"rope_theta": 900.0, "rope_type": "linear", "factor": 8.0},
    "sliding_attention": {"rope_theta": 500.0, "rope_type": "default"},
}
LINEAR, DYNAMIC = ({**THETA, "rope_type": kind, "factor": 2.0} for kind in ("linear", "dynamic"))
BASES = {  # 4.57 takes one base for both kinds of ModernBERT's layers
    "full_attention": THETA,
    "sliding_attention": THETA,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
DEEPSEEK = {
    **EXPERTS,
    "n_routed_experts": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "num_key_value_heads": 4,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rope_parameters": THETA}),
    "llama-tied": ("llama", {"rope_parameters": THETA, "tie_word_embeddings": True}),
    "llama-llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "llama-linear": ("llama", {"rope_parameters": LINEAR}),
    "llama-dynamic": ("llama", {"rope_parameters": DYNAMIC}),
    "mistral": ("mistral", {"rope_parameters": THETA, "sliding_window": 8}),
    "qwen2": ("qwen2", {"rope_parameters": THETA}),
    "qwen3": ("qwen3", {"rope_parameters": YARN}),
    "gemma": ("gemma", {"rope_parameters": THETA}),
    "gemma2": ("gemma2", {"rope_parameters": THETA, "sliding_window": 8}),
    "gemma3": ("gemma3_text", {"rope_parameters": BY_LAYER, "sliding_window": 8,
                               "layer_types": ["sliding_attention", "full_attention"]}),
    "phi": ("phi", {"rope_parameters": {**THETA, "partial_rotary_factor": 0.5}}),
    "phi3": ("phi3", {"rope_parameters": THETA}),
    "phi3-longrope": ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 16}),
    "gpt_neox": ("gpt_neox", {"rope_parameters": {**THETA, "partial_rotary_factor": 0.5}}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "falcon": ("falcon", {"rope_parameters": THETA, "alibi": False, "head_dim": None}),
    "stablelm": ("stablelm", {"rope_parameters": {**THETA, "partial_rotary_factor": 0.5}}),
    "starcoder2": ("starcoder2", {"rope_parameters": THETA}),
    "olmo2": ("olmo2", {"rope_parameters": THETA}),
    "granite": ("granite", {"rope_parameters": THETA}),
    "cohere": ("cohere", {"rope_parameters": THETA}),
    "cohere2": ("cohere2", {"rope_parameters": THETA, "sliding_window": 8}),
    "smollm3": ("smollm3", {"rope_parameters": THETA}),
    "glm4": ("glm4", {"rope_parameters": {**THETA, "partial_rotary_factor": 0.5}}),
    "nemotron": ("nemotron", {"rope_parameters": {**THETA, "partial_rotary_factor": 0.5}}),
    "granitemoehybrid": (
        "granitemoehybrid",
        {"layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 8,
         "mamba_d_state": 8, "num_local_experts": 4, "shared_intermediate_size": 24},
    ),
    "mixtral": ("mixtral", {"rope_parameters": THETA, **EXPERTS, "num_local_experts": 4}),
    "qwen2_moe": ("qwen2_moe", {"rope_parameters": THETA, **EXPERTS, "num_experts": 4}),
    "qwen3_moe": ("qwen3_moe", {"rope_parameters": THETA, **EXPERTS, "num_experts": 4}),
    "gpt_oss": ("gpt_oss", {"rope_parameters": YARN, **EXPERTS, "num_local_experts": 4}),
    "deepseek_v3": ("deepseek_v3", {"rope_parameters": THETA, **DEEPSEEK}),
    "glm4_moe": ("glm4_moe", {"rope_parameters": THETA, **DEEPSEEK}),
    "modernbert-decoder": ("modernbert-decoder", {"rope_parameters": BASES}),
}  # fmt: skip

LETTERS = "abcdefghijklmnopqrstuvwxyz,.:<|_>\n0123456789TL"
PIECES = ["th", "the", "er", "▁th", "▁the", "li", "gh", "▁li", "ou", "▁▁"]
KINDS = ("bytes", "llama", "llama-bos", "gemma", "gemma-bos", "qwen2", "gpt2", "gpt_neox")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_base(folder: Path, model_type: str, options: dict[str, Any]) -> None:
    """Write a tiny random model with a tokenizer, as transformers 5 writes them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    options = {k: v for k, v in {**SMALL, **options}.items() if v is not None}
    config = AutoConfig.for_model(model_type, **copy.deepcopy(options))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.15)
    model.save_pretrained(folder)
    tokenizer_of("bytes").save_pretrained(folder)


def tokenizer_of(kind: str) -> Any:
    """Return a tokenizer of one of ``KINDS``, transformers 5's classes, with ChatML turns."""
    import transformers

    special = {"extra_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"}
    if kind == "bytes":
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=_bytes(), chat_template=CHATML, **special
        )
    kind, _, bos = kind.partition("-")
    name = {"llama": "LlamaTokenizer", "gemma": "GemmaTokenizer"}.get(kind)
    if name is not None:
        vocabulary, merges = _pieces()
        special |= {"add_bos_token": bool(bos)}
    else:
        names = {"gpt2": "GPT2Tokenizer", "qwen2": "Qwen2Tokenizer"}
        name = names.get(kind, "GPTNeoXTokenizer")
        letters = [t for t in _bytes().get_vocab() if len(t) == 1]
        vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", *letters, "th", "the"])}
        merges = [("t", "h"), ("th", "e")]
    return getattr(transformers, name)(vocabulary, merges, chat_template=CHATML, **special)


def _pieces() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the vocabulary and the merges of a tokenizer made of a SentencePiece model."""
    special = ["<unk>", "<s>", "</s>", "<pad>", "<bos>", "<mask>"]
    tokens = [*special, *(f"<0x{i:02X}>" for i in range(256)), "▁", *LETTERS, *PIECES]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    cuts = [(piece[:i], piece[i:]) for piece in PIECES for i in range(1, len(piece))]
    return vocabulary, [cut for cut in cuts if cut[0] in vocabulary and cut[1] in vocabulary]


def _bytes() -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(t, special=True) for t in ("<|im_end|>", "<|im_start|>")])
    return tokenizer
