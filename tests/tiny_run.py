"""A tiny base folder with a byte tokenizer, rows, and training runs over them: all offline."""

import json
import random
from pathlib import Path
from typing import Any

import lightning as L
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from peft_lightning import CausalLMModule, LoRA, SFTDataModule
from peft_lightning.adapters import Adapter
from peft_lightning.data.collate import Batch, flat_collate
from tiny import tiny_model

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHECKPOINT_FILES = {  # of a run with an adapter
    *("SHA256SUMS", "adapter_config.json", "adapter_model.safetensors"),
    *("peft_lightning.json", "trainer_state.pt"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
}
SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>", "<unk>"]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token a byte and ChatML turns."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(SPECIAL + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        chat_template=CHATML,
    )


def write_base(
    folder: Path, architecture: str = "llama", dtype: torch.dtype = torch.float32
) -> Path:
    """Write a tiny random model and its tokenizer as an HF folder."""
    tokenizer = byte_tokenizer()
    tiny_model(architecture, dtype, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def flat_batch(lens: list[int], seed: int = 0) -> Batch:
    """Return a flat batch of random rows of ``lens`` tokens, all labelled, as plain text is."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, 100, (n,), generator=generator).numpy() for n in lens]
    return flat_collate([{"input_ids": ids, "labels": ids} for ids in rows])


def write_rows(file: Path, count: int = 24, seed: int = 0) -> Path:
    """Write prompt and completion rows of uneven lengths."""
    draw = random.Random(seed)
    with file.open("w", encoding="utf-8") as out:
        for i in range(count):
            row = {
                "prompt": f"say {i} " + "ab " * draw.randrange(4),
                "completion": "ok " * draw.randrange(1, 9) + str(i),
            }
            out.write(json.dumps(row) + "\n")
    return file


def fit(
    base: Path,
    rows: Path | str | list[str],
    root: Path,
    *,
    adapter: Adapter | None = None,
    callbacks: list[Any] | None = None,
    ckpt_path: str | None = None,
    module: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    seed: int = 0,
    module_class: type[CausalLMModule] = CausalLMModule,
    data_class: type[L.LightningDataModule] = SFTDataModule,
    trainer_class: type[L.Trainer] | None = None,
    **trainer: Any,
) -> L.Trainer:
    """Train a tiny LoRA as the command line would; return the trainer."""
    L.seed_everything(seed, verbose=False)
    module = module or {}
    rate = {} if "optimizer" in module else {"learning_rate": 1e-2}  # which has its own
    model = module_class(str(base), adapter or LoRA(r=2), **{**rate, **module})
    datamodule = data_class(
        train=rows if isinstance(rows, list) else str(rows),
        **{"batch_size": 4, "cache_dir": str(root.parent / "cache"), **(data or {})},
    )
    options = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
    }
    options = {**options, "default_root_dir": root, "callbacks": callbacks or [], **trainer}
    runner = (trainer_class or L.Trainer)(**options)
    runner.fit(model, datamodule, ckpt_path=ckpt_path)
    return runner
