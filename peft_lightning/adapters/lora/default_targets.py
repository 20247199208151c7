"""The layers that HF PEFT's LoRA acts on if none are named, by the model's architecture."""

from typing import Any

from peft_lightning.messages import UserError, did_you_mean

_QV, _FUSED = ["q_proj", "v_proj"], ["query_key_value"]

BY_MODEL_TYPE: dict[str, list[str] | str] = {  # peft/utils/constants.py of 0.21.2: causal LMs
    **dict.fromkeys(["opt", "gptj", "gpt_neo", "llama", "llama4", "mistral", "mixtral"], _QV),
    **dict.fromkeys(["stablelm", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"], _QV),
    **dict.fromkeys(["bloom", "gpt_neox", "chatglm", "falcon", "RefinedWeb"], _FUSED),
    "RefinedWebModel": _FUSED,
    "btlm": ["c_proj", "c_attn"],
    "codegen": ["qkv_proj"],
    "gemma4": r".*language_model\..*\.(q_proj|v_proj)",
    "gpt2": ["c_attn"],
    "gpt_bigcode": ["c_attn"],
    "mpt": ["Wqkv"],
    "nemotron_h": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "phi": ["q_proj", "v_proj", "fc1", "fc2"],
    "rwkv": ["key", "value", "receptance", "output"],
    "rwkv7": ["r_proj", "k_proj", "v_proj", "o_proj", "key", "value"],
}


def default_targets(model: Any) -> list[str] | str:
    """Return the names of the layers, or an expression for them.

    Raises:
        UserError: If HF PEFT has none for this architecture.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in BY_MODEL_TYPE:
        raise UserError(
            f"target_modules is not set, and HF PEFT has no default for model type {kind!r}: name "
            "the layers to act on, or give all-linear" + did_you_mean(str(kind), BY_MODEL_TYPE)
        )
    return BY_MODEL_TYPE[kind]
