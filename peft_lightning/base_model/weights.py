"""A base's weights read tensor by tensor from its safetensors files: the model is never whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, rename_source_key

from peft_lightning.base_model.fingerprint import fingerprint_of
from peft_lightning.base_model.load_errors import explained, require_causal
from peft_lightning.base_model.quantization import quantization_method
from peft_lightning.base_model.resolve import INDEX_FILE, locate, model_folder, shard_files
from peft_lightning.messages import UserError
from peft_lightning.process.progress import Progress

SINGLE_FILE = "model.safetensors"

_DTYPES = {  # safetensors' names
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "BOOL": torch.bool},
}


class NotStreamableError(LookupError):
    """A base cannot be read tensor by tensor; the message says why."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is, and what it is like; reading it maps its file for that long only.

    Args:
        file: A safetensors file.
        key: The tensor's name there.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self) -> Tensor:
        """Return the tensor, on the CPU."""
        with safe_open(self.file, "pt") as opened:
            return opened.get_tensor(self.key)


@dataclass(frozen=True)
class WeightFiles:
    """The weights of a base by name, in its files and in its model.

    Args:
        folder: That of the model's files, config and tokenizer among them.
        model: The model without values, on the meta device.
        stored: Tensors by their keys in the files.
        keys: Parameter or buffer of the model -> key. Tied weights have one key.
    """

    folder: Path
    model: PreTrainedModel
    stored: dict[str, StoredTensor]
    keys: dict[str, str]

    def of(self, name: str) -> StoredTensor:
        """Return where the model's parameter ``name`` is stored."""
        return self.stored[self.keys[name]]

    def names(self) -> dict[str, list[str]]:
        """Return the names in the model of each key that it reads."""
        found: dict[str, list[str]] = {}
        for name, key in self.keys.items():
            found.setdefault(key, []).append(name)
        return found

    def fingerprint(self) -> dict[str, Any]:
        """Return ``base_fingerprint`` of the model, read tensor by tensor."""
        names = [name for name, _ in self.model.named_parameters() if "." in name]
        with Progress(f"reading {self.folder.name}", len(names), "tensors") as progress:

            def tensors() -> Iterator[tuple[str, Tensor]]:
                for count, name in enumerate(names):
                    progress.update(count)
                    yield name, self.of(name).read()

            return fingerprint_of(type(self.model).__name__, tensors())


def open_weights(
    name: str, *, trust_remote_code: bool = False, revision: str | None = None
) -> WeightFiles:
    """Find the weights of a base in its files, without loading them.

    Args:
        name: Hub id or local folder.
        trust_remote_code: Whether code that comes with the model may run.
        revision: Branch, tag or commit of a hub id.

    Raises:
        UserError: If there is no such model, it is not a causal LM, or it is quantised by
            something else than bitsandbytes.
        NotStreamableError: If the model has no safetensors files, these lack weights or hold
            quantised ones, or transformers fuses or splits tensors when it loads them.
    """
    source, options = locate(name, revision)
    if "gguf_file" in options:
        raise NotStreamableError("it is a GGUF file, whose weights are dequantised")
    with explained("base model", name, options):
        folder = model_folder(source, options)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    require_causal(name, config)
    if (method := quantization_method(config)) == "bitsandbytes":
        raise NotStreamableError("its weights are quantised, and are dequantised")
    if method:
        raise UserError(
            f"the base model {name} is quantised by {method}: give the one it was made from, with "
            "--base_model and --allow_base_mismatch true"
        )
    files = _files(folder)
    with explained("base model", name, options), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    stored: dict[str, StoredTensor] = {}
    for file in files:
        stored |= stored_tensors(file)
    return WeightFiles(folder, model.eval(), stored, _keys(name, model, stored))


def _files(folder: Path) -> list[Path]:
    """Return the safetensors files that transformers would load from ``folder``."""
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if not (folder / INDEX_FILE).is_file():
        raise NotStreamableError(f"it has no {SINGLE_FILE}")
    return shard_files(folder / INDEX_FILE)


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """Return what a safetensors file holds.

    Raises:
        UserError: If it cannot be read, or has a dtype that only quantised weights have.
    """
    try:
        with safe_open(file, "pt") as opened:
            found = {}
            for key in opened.keys():  # noqa: SIM118 - it has no other iteration
                part = opened.get_slice(key)
                if part.get_dtype() not in _DTYPES:
                    raise UserError(f"{file}: {key} has dtype {part.get_dtype()}, quantised?")
                dtype = _DTYPES[part.get_dtype()]
                found[key] = StoredTensor(file, key, tuple(part.get_shape()), dtype)
            return found
    except SafetensorError as error:
        raise UserError(f"{file} cannot be read, it may be damaged: {error}") from None


def _keys(name: str, model: Any, stored: dict[str, StoredTensor]) -> dict[str, str]:
    """Return the key of each parameter and buffer of ``model`` among ``stored``."""
    state = model.state_dict(keep_vars=True)
    keys: dict[str, str] = {}
    for key, (target, is_fused) in _targets(model, state, sorted(stored)):
        if target not in state:
            continue  # such as a rotary table of older releases: nothing reads it
        if is_fused or target in keys:
            raise NotStreamableError(f"transformers makes {target} of several of its tensors")
        if stored[key].shape != tuple(state[target].shape):
            raise UserError(
                f"the base model {name} has a {target} of shape {stored[key].shape}, and its "
                f"config asks for {tuple(state[target].shape)}"
            )
        keys[target] = key
    for group in _tied(state):  # the first name that is stored holds the values of all
        first = next((n for n in group if n in keys), None)
        keys |= {n: keys[first] for n in group} if first else {}
    if lost := [n for n in state if n not in keys]:  # loading knows whether that is an error
        raise NotStreamableError(f"its files have no {lost[0]}")
    return keys


def _targets(
    model: Any, state: dict[str, Tensor], keys: list[str]
) -> Iterator[tuple[str, tuple[str, bool]]]:
    """Yield each key with its name in the model, and whether it is but a part of that tensor."""
    transforms = get_model_conversion_mapping(model)
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    renamings: list[Any] = [t for t in transforms if not isinstance(t, WeightConverter)]
    prefix = model.base_model_prefix
    for key in keys:
        target, pattern = rename_source_key(key, renamings, converters, prefix, state)
        if target not in state and key in state:
            target, pattern = key, None
        yield key, (target, pattern is not None)


def _tied(state: dict[str, Tensor]) -> list[list[str]]:
    """Return the names of each tensor."""
    groups: dict[int, list[str]] = {}
    for name, tensor in state.items():
        groups.setdefault(id(tensor), []).append(name)
    return list(groups.values())
