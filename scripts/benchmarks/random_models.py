"""Writes a model of a known shape with random weights, and a tokenizer for it: no download.

python scripts/benchmarks/random_models.py SHAPE FOLDER [--device cuda]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import workload
from throughput import layer_shapes

# from the config.json of each on the hub
SHAPES: dict[str, dict[str, Any]] = {
    "SmolLM2-1.7B": {
        "vocab_size": 49152,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "Llama-3.1-8B": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
}
MOST_TOKENS = 2048  # of the tokenizer: what the texts give in a second or two
END = "<|end|>"


def main() -> None:
    """Write the model that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    write(options.shape, options.folder, options.device)


def config_of(shape: str) -> Any:
    """Return the config of a shape of ``SHAPES``."""
    from transformers import LlamaConfig

    return LlamaConfig(**SHAPES[shape], bos_token_id=0, eos_token_id=0, dtype="bfloat16")


def write(shape: str, folder: Path, device: str) -> None:
    """Write weights drawn on ``device``, in bfloat16, and the tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    config = config_of(shape)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained_tokenizer(min(MOST_TOKENS, config.vocab_size)),
        bos_token=END,
        eos_token=END,
        pad_token=END,
    )
    tokenizer.save_pretrained(folder)


def trained_tokenizer(size: int) -> Any:
    """Return a byte-level BPE tokenizer of ``size`` tokens, learnt from the benchmark's texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(workload._texts(), trainer)
    return tokenizer


def weight_bytes(config: Any) -> int:
    """Return the bytes of the weights in bfloat16, norms left out."""
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    return 2 * (config.num_hidden_layers * sum(i * o for i, o in layer_shapes(config)) + embeddings)


if __name__ == "__main__":
    main()
