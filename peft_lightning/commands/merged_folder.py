"""A base with an adapter merged, written as an HF folder: shard by shard where that can be."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from peft_lightning.adapters.base import as_json
from peft_lightning.adapters.lora import LoRA
from peft_lightning.adapters.lora_layers import LoRALinear, is_conv1d
from peft_lightning.adapters.merging import add_update, merged
from peft_lightning.adapters.names import check_names
from peft_lightning.base_model.weight_files import (
    INDEX_FILE,
    SINGLE_FILE,
    StoredTensor,
    WeightFiles,
)

_COPIED = {".json", ".jinja", ".model", ".txt", ".tiktoken", ".py"}
_NOT_COPIED = re.compile(r".*\.index\.json|adapter_.*|peft_lightning\.json|requirements\.txt")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def size_in_bytes(text: str) -> int:
    """Return 2000000000 for "2GB".

    Raises:
        ValueError: If it is no size above 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]i?B)", str(text), re.IGNORECASE)
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size < 1:
        raise ValueError(f"max_shard_size must be a size such as 2GB or 500MB, got {text!r}")
    return size


@dataclass(frozen=True)
class _Piece:
    """A tensor of the merged model: one of the base's, cast, with an update or without."""

    key: str
    source: StoredTensor
    dtype: torch.dtype
    layer: str | None

    @property
    def size(self) -> int:
        return math.prod(self.source.shape) * self.dtype.itemsize


def write_streamed(
    folder: Path,
    weights: WeightFiles,
    adapter: LoRA,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    max_shard_size: int,
) -> None:
    """Write the merged model into ``folder``, which exists, with one shard at a time in memory.

    Args:
        folder: Empty.
        weights: Of the base. The adapter is attached to their model, which has no values.
        adapter: Whose updates are added.
        tensors: The adapter's, as its file names them.
        dtype: Of the floating-point tensors; as they are stored if None.
        max_shard_size: In bytes; a larger tensor is a shard by itself.

    Raises:
        ValueError: If the tensors do not fit the adapter in this model, or a layer cannot be
            merged; names it.
    """
    adapter.attach(weights.model, initialise=False)
    layers = adapter.layers(weights.model)
    repeated = {n: f"base_model.model.{n}.base_layer.weight" for n in layers}
    check_names(
        adapter.state_dict(weights.model),
        {name: t for name, t in tensors.items() if name not in repeated.values()},
    )
    pieces = _pieces(weights, layers, dtype)
    shards = list(_shards(pieces, max_shard_size))
    names = [SINGLE_FILE]
    if len(shards) > 1:
        count = len(shards)
        names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    for name, shard in zip(names, shards, strict=True):
        content = {p.key: _merged(p, layers, tensors, repeated) for p in shard}
        save_file(content, folder / name, metadata={"format": "pt"})
        del content
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(piece.size for piece in pieces)},
            "weight_map": {p.key: n for n, s in zip(names, shards, strict=True) for p in s},
        }
        (folder / INDEX_FILE).write_text(as_json(index), encoding="utf-8")
    untied = {piece.key for piece in pieces} - weights.stored.keys()
    _copy_texts(weights.folder, folder, dtype, untie=bool(untied))


def _pieces(
    weights: WeightFiles, layers: Mapping[str, LoRALinear], dtype: torch.dtype | None
) -> list[_Piece]:
    """Return the tensors of the merged model in the order of the base's files."""
    shared: dict[str, list[str]] = {}
    for name, key in weights.keys.items():
        shared.setdefault(key, []).append(name)
    updated: dict[str, str] = {}  # key -> layer
    added: list[_Piece] = []
    for name in layers:
        key = weights.keys[f"{name}.weight"]
        source = weights.stored[key]
        if len(shared[key]) == 1:
            updated[key] = name
            continue
        head = weights.model.get_output_embeddings()
        if head is not layers[name] or len(shared[key]) > 2:
            others = [n for n in shared[key] if n != f"{name}.weight"]
            raise ValueError(
                f"cannot merge into {name}: its weight is also that of {', '.join(others)}, which "
                "the adapter leaves alone; serve the adapter unmerged"
            )
        added.append(_Piece(f"{name}.weight", source, dtype or source.dtype, name))

    def dtype_of(stored: StoredTensor) -> torch.dtype:
        return dtype if dtype and stored.dtype.is_floating_point else stored.dtype

    own = {piece.key for piece in added}  # a tied head that the files hold all the same
    return [
        _Piece(key, stored, dtype_of(stored), updated.get(key))
        for key, stored in weights.stored.items()
        if key not in own
    ] + added


def _shards(pieces: list[_Piece], max_shard_size: int) -> Iterator[list[_Piece]]:
    shard: list[_Piece] = []
    for piece in pieces:
        if shard and sum(p.size for p in shard) + piece.size > max_shard_size:
            yield shard
            shard = []
        shard.append(piece)
    yield shard


def _merged(
    piece: _Piece,
    layers: Mapping[str, LoRALinear],
    tensors: Mapping[str, Tensor],
    repeated: Mapping[str, str],
) -> Tensor:
    """Return the values of ``piece``."""
    weight = piece.source.read()
    if piece.layer is None:
        cast = weight.to(piece.dtype)
        if piece.dtype != weight.dtype and not cast.isfinite().all():
            raise ValueError(f"{piece.key} has values that are too large for {piece.dtype}")
        return cast
    own = tensors.get(repeated[piece.layer])
    if own is not None and not torch.equal(own.to(weight), weight):
        raise ValueError(
            f"the file brings its own base weight, {repeated[piece.layer]}, and it is not this "
            "model's: load the base that the adapter was trained on"
        )
    layer = layers[piece.layer]
    a, b = (tensors[f"base_model.model.{piece.layer}.{p}.weight"] for p in ("lora_A", "lora_B"))
    transposed = is_conv1d(layer.base_layer)
    return add_update(
        weight, a, b, layer.scaling, piece.layer, transposed=transposed, dtype=piece.dtype
    )


def write_whole(
    folder: Path, model: Any, tokenizer: Any, dtype: torch.dtype | None, max_shard_size: int
) -> None:
    """Write ``model``, a base with its adapter attached, merged into ``folder``, which exists.

    For a base that cannot be read tensor by tensor: it and its merged weights are in memory. The
    model is of no use afterwards.

    Raises:
        ValueError: If a value is not finite in ``dtype``; names its tensor.
    """
    was_tied = _is_tied(model)
    with merged(model):
        if was_tied and not _is_tied(model):
            model.config.tie_word_embeddings = False
            model.config.get_text_config().tie_word_embeddings = False
        model.to(dtype or model.dtype)
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise ValueError(f"{name} has values that are too large for {tensor.dtype}")
        model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)


def _is_tied(model: Any) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def _copy_texts(source: Path, folder: Path, dtype: torch.dtype | None, untie: bool) -> None:
    """Copy config, tokenizer, template and licence; the config says what has changed."""
    for file in sorted(source.iterdir()):
        wanted = file.suffix in _COPIED or file.name.upper().startswith(("LICEN", "NOTICE"))
        if file.is_file() and wanted and not _NOT_COPIED.fullmatch(file.name):
            shutil.copyfile(file, folder / file.name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    parts = [config, *(v for v in config.values() if isinstance(v, dict))]
    for part in parts:
        if dtype is not None and (part is config or {"dtype", "torch_dtype"} & part.keys()):
            part.pop("torch_dtype", None)
            part["dtype"] = str(dtype).removeprefix("torch.")
        if untie and (part is config or "tie_word_embeddings" in part):
            part["tie_word_embeddings"] = False
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(as_json(config) + "\n", encoding="utf-8")
