"""A base with an adapter merged, written as an HF folder, shard by shard where possible."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig

from peft_lightning.adapters.base import as_json
from peft_lightning.adapters.base_check import require_base
from peft_lightning.adapters.folder import SavedAdapter, load_adapter, read_adapter
from peft_lightning.adapters.lora.merge_extra_modules import has_extra_modules
from peft_lightning.adapters.lora.trainable_tokens import is_tied
from peft_lightning.adapters.merge import merged, merges_itself, require_lora
from peft_lightning.base_model import base_fingerprint, load_base_model
from peft_lightning.base_model.generation_config import FILE as GENERATION_CONFIG
from peft_lightning.base_model.load import AS_SAVED
from peft_lightning.base_model.portable import make_portable
from peft_lightning.base_model.quantization import dequantized
from peft_lightning.base_model.resolve import brings_tokenizer
from peft_lightning.base_model.weights import (
    INDEX_FILE,
    SINGLE_FILE,
    NotStreamableError,
    open_weights,
)
from peft_lightning.export.merged_tokenizer import put_tokenizer, tokenizer_to_merge
from peft_lightning.export.merged_weights import MergedTensors, Piece
from peft_lightning.messages import UserError
from peft_lightning.process.progress import Progress

_COPIED = {".json", ".jinja", ".model", ".txt", ".tiktoken", ".py"}
_NOT_COPIED = re.compile(r".*\.index\.json|adapter_.*|peft_lightning\.json|requirements\.txt")


def write_merged(
    folder: Path,
    ckpt_path: str,
    base: str,
    dtype: torch.dtype | None,
    max_shard_size: int,
    allow_base_mismatch: bool,
    options: dict[str, Any],
    quantization: str | None = None,
    saved: SavedAdapter | None = None,
    tokenizer: str | None = None,
) -> None:
    """Merge an adapter into its base, tensor by tensor, or with the base in memory if needed.

    Args:
        folder: To write into; exists, and is empty.
        ckpt_path: Folder of an adapter that can be merged.
        base: Hub id, folder or GGUF file.
        dtype: Of the floating-point tensors; as the base's if None.
        max_shard_size: In bytes.
        allow_base_mismatch: Merge even if the adapter was trained on another base.
        options: ``trust_remote_code`` and ``revision``, for the base.
        quantization: Merge into the base's weights after quantising (4bit or 8bit) and
            dequantising them; None for the original weights.
        saved: The content of ``ckpt_path`` if it has been read already.
        tokenizer: Hub id or folder of the tokenizer to write; None for the adapter's, else the
            base's.

    Raises:
        UserError: If the two do not belong together, or a layer cannot be merged.
    """
    adapter, tensors, facts = saved = saved or read_adapter(ckpt_path)
    try:
        if merges_itself(adapter):
            raise NotStreamableError(f"{type(adapter).__name__} merges itself into a model")
        if has_extra_modules(tensors):
            raise NotStreamableError("the adapter trains more than updates of linear layers")
        if quantization:
            raise NotStreamableError(f"its weights are quantised to {quantization} and dequantised")
        weights = open_weights(base, **options)
    except NotStreamableError as reason:
        print(f"{base} cannot be read tensor by tensor, it is loaded whole: {reason}")
        wide = AS_SAVED if dtype is None else "float32"
        loaded = load_base_model(base, dtype=wide, quantization=quantization, **options)
        fingerprint = base_fingerprint(loaded)
        loaded = dequantized(loaded)
        load_adapter(
            loaded,
            ckpt_path,
            allow_base_mismatch=allow_base_mismatch,
            base_fingerprint=fingerprint,
            saved=saved,
        )
        own = tokenizer_to_merge(base, ckpt_path, tokenizer, adapter, loaded, options)
        write_whole(folder, loaded, own, dtype, max_shard_size)
        return
    if not allow_base_mismatch:
        require_base(ckpt_path, facts, weights.fingerprint())
    found = MergedTensors(weights, require_lora(adapter, "merging", ckpt_path), tensors, dtype)
    own = None
    if tokenizer is not None or brings_tokenizer(Path(ckpt_path)):  # before the work starts
        own = tokenizer_to_merge(base, ckpt_path, tokenizer, adapter, weights.model, options)
    write_streamed(folder, found, max_shard_size)
    put_tokenizer(folder, ckpt_path, own if tokenizer is not None else None)
    make_portable(folder)


def write_streamed(folder: Path, merged_tensors: MergedTensors, max_shard_size: int) -> None:
    """Write a merged model into ``folder``, which is empty, with one shard at a time in memory.

    Args:
        folder: Exists.
        merged_tensors: The model.
        max_shard_size: In bytes; a larger tensor is a shard by itself.

    Raises:
        UserError: If a layer cannot be merged; names it.
    """
    shards = list(_shards(merged_tensors.pieces, max_shard_size))
    names = [SINGLE_FILE]
    if len(shards) > 1:
        count = len(shards)
        names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    with Progress("merging", sum(p.size for p in merged_tensors.pieces) / 1e6, "MB") as progress:
        for name, shard in zip(names, shards, strict=True):
            content = {}
            for piece in shard:
                content[piece.key] = merged_tensors.read(piece)
                progress.update(progress.done + piece.size / 1e6)
            save_file(content, folder / name, metadata={"format": "pt"})
            del content
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(p.size for p in merged_tensors.pieces)},
            "weight_map": {p.key: n for n, s in zip(names, shards, strict=True) for p in s},
        }
        (folder / INDEX_FILE).write_text(as_json(index), encoding="utf-8")
    _copy_texts(merged_tensors, folder)


def _shards(pieces: list[Piece], max_shard_size: int) -> Iterator[list[Piece]]:
    shard: list[Piece] = []
    for piece in pieces:
        if shard and sum(p.size for p in shard) + piece.size > max_shard_size:
            yield shard
            shard = []
        shard.append(piece)
    yield shard


def write_whole(
    folder: Path, model: Any, tokenizer: Any, dtype: torch.dtype | None, max_shard_size: int
) -> None:
    """Write ``model``, a base with its adapter attached, merged into ``folder``, which exists.

    For a base that cannot be read tensor by tensor: it and its merged weights are in memory. The
    model is of no use afterwards.

    Raises:
        UserError: If a value is not finite in ``dtype``; names its tensor.
    """
    with merged(model):
        if not is_tied(model):
            model.config.tie_word_embeddings = False
            model.config.get_text_config().tie_word_embeddings = False
        model.to(dtype or model.dtype)
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise UserError(f"{name} has values that are too large for {tensor.dtype}")
        values = model.generation_config.to_diff_dict()
        model.generation_config = GenerationConfig()  # a strange one is not saved by transformers
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        (folder / GENERATION_CONFIG).write_text(as_json(values), encoding="utf-8")
    tokenizer.save_pretrained(folder)
    make_portable(folder)


def _copy_texts(source: MergedTensors, folder: Path) -> None:
    """Copy config, tokenizer, template and licence, and update dtype and tying in the config."""
    for file in sorted(source.weights.folder.iterdir()):
        wanted = file.suffix in _COPIED or file.name.upper().startswith(("LICEN", "NOTICE"))
        if file.is_file() and wanted and not _NOT_COPIED.fullmatch(file.name):
            shutil.copyfile(file, folder / file.name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    dtype = source.dtype and str(source.dtype).removeprefix("torch.")
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        if dtype and (part is config or {"dtype", "torch_dtype"} & part.keys()):
            part.pop("torch_dtype", None)
            part["dtype"] = dtype
        if source.is_untied and (part is config or "tie_word_embeddings" in part):
            part["tie_word_embeddings"] = False
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(as_json(config) + "\n", encoding="utf-8")
    make_portable(folder)
