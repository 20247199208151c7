"""Where a base model is: a local folder, a GGUF file or the hub; and what is near if it is not."""

from __future__ import annotations

import json
import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from peft_lightning.files import user_cache
from peft_lightning.messages import UserError, did_you_mean
from peft_lightning.process.network import hub_answers

# weights, configs, tokenizers and templates, as names on the hub
FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
_MODEL_FILES = [*FILES, "*.py", "LIC*"]
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*")
_VOCABULARY = re.compile(r"(tokenizer|tekken)\.json|vocab\.(json|txt)|.*\.(model|tiktoken)")
_TOKENIZER = re.compile(
    rf"{_VOCABULARY.pattern}|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|merges\.txt|chat_template\.(jinja|json)"
)
LARGEST_INDEX = 2**28  # bytes; some hundred of each tensor
INDEX_FILE = "model.safetensors.index.json"
_BY_PREFERENCE = (  # transformers loads the first that is there
    "model.safetensors",
    INDEX_FILE,
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def locate(name: str, revision: str | None, weights: bool = True) -> tuple[str, dict[str, Any]]:
    """Return what ``from_pretrained`` takes for ``name``: a source and options.

    Raises:
        UserError: If it is a path that is not there, or a folder that holds something else.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        _require_model_folder(path, weights)
        return str(path), {}
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(f"{name} is a file: give a model's folder, a .gguf file or a hub id")
        return str(path.parent), {"gguf_file": path.name}
    if path.suffix == ".gguf" or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise UserError(f"there is no {name}{nearest_place(path)}")
    return name, {"revision": revision or "main", "local_files_only": not hub_answers()}


def _require_model_folder(path: Path, weights: bool) -> None:
    if (path / "adapter_config.json").is_file() and (weights or not brings_tokenizer(path)):
        raise UserError(
            f"{path} is an adapter's folder: the base model is the one it was trained on, named in "
            "its adapter_config.json"
        )
    if not weights:
        return
    loaded = next((path / name for name in _BY_PREFERENCE if (path / name).is_file()), None)
    if loaded is not None and loaded.suffix == ".json":
        shard_files(loaded)
    found = any(next(path.glob(pattern), None) for pattern in _WEIGHTS)
    if not (path / "config.json").is_file() or not found:
        lacks = "no weights" if (path / "config.json").is_file() else "no config.json"
        files = sorted(p.name for p in path.glob("*.gguf"))
        hint = f": give the file, {path / files[0]}" if files else ""
        hint = hint or f": it needs config.json and model.safetensors{nearest_place(path / 'x')}"
        raise UserError(f"{path} holds no model, it has {lacks}{hint}")


def shard_files(index: Path) -> list[Path]:
    """Return the files with the parts of a model, as the index beside them names them.

    Raises:
        UserError: If it is no index, or one is not there or outside of its folder.
    """
    if (size := index.stat().st_size) > LARGEST_INDEX:
        raise UserError(f"{index} has {size:,} bytes, and an index at most {LARGEST_INDEX:,}")
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{index} is not JSON: {error}") from None
    content = content if isinstance(content, dict) else {}
    parts = content.get("weight_map")
    names_of_files = isinstance(parts, dict) and all(isinstance(n, str) for n in parts.values())
    if not parts or not names_of_files or not isinstance(content.get("metadata"), dict):
        raise UserError(f"{index} needs a weight_map of tensors' names to files, and metadata")
    names = sorted(set(parts.values()))
    if outside := [n for n in names if Path(n).is_absolute() or ".." in Path(n).parts or "\0" in n]:
        raise UserError(f"{index} names {outside[0]!r}, which is not in its folder")
    suffix = index.suffixes[-3]  # what transformers takes for something else, it may unpickle
    if strange := [name for name in names if Path(name).suffix != suffix]:
        raise UserError(f"{index} names {strange[0]!r:.80}, no {suffix} file")
    files = [index.parent / name for name in names]
    if absent := [file.name for file in files if not file.is_file()]:
        raise UserError(f"{index.parent} is not complete: {index.name} names {absent[0]!r:.80}")
    return files


def model_folder(source: str, options: dict[str, Any]) -> Path:
    """Return the folder with the files of a model: the local one, or that of the hub's cache.

    Args:
        source: As ``locate`` returns it, with ``options``; not for a GGUF file.
        options: ``revision`` and ``local_files_only`` for a hub id, none for a folder.

    Raises:
        OSError: If the hub has no such model, or is not there.
    """
    if "revision" not in options:
        return Path(source)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source, allow_patterns=_MODEL_FILES, **options))


def is_at_hand(name: str | None, revision: str | None = None) -> bool:
    """Whether a base model can be loaded without downloading its weights."""
    if not name:
        return False
    if Path(name).expanduser().exists():
        return True
    folder = cached_folder(name, revision)
    return folder is not None and any(next(folder.glob(p), None) for p in _WEIGHTS)


def cached_folder(name: str, revision: str | None = None) -> Path | None:
    """Return the folder of a hub id in the hub's cache, None if it is not there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def nearest_place(path: Path) -> str:
    """Return a hint at folders and files of a name near that of ``path``."""
    cached = user_cache("models") / path.name  # where get_smollm2.py writes
    if cached.is_dir() and cached != path:
        return f"; did you mean {cached}?"
    folder = path.parent if path.parent.is_dir() else Path()
    names = [p.name for p in folder.iterdir() if p.is_dir() or p.suffix == ".gguf"]
    return did_you_mean(path.name, names, most=3, show=lambda name: str(folder / name))


def brings_tokenizer(folder: Path) -> bool:
    """Whether a folder has the vocabulary of a tokenizer."""
    return any(_VOCABULARY.fullmatch(file.name) for file in folder.iterdir())


def tokenizer_files_in(folder: Path) -> dict[str, bytes]:
    """Return the files of the tokenizer in a folder, and its chat template, by name."""
    files = [f for f in folder.iterdir() if _TOKENIZER.fullmatch(f.name) and f.is_file()]
    return {file.name: file.read_bytes() for file in sorted(files)}


def short_name(name: str) -> str:
    """Return a hub id as it is, or the last part of a path."""
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() else name


def reading(options: dict[str, Any]) -> AbstractContextManager[Any]:
    """Return the context in which transformers reads a GGUF file fast, if it is one."""
    if "gguf_file" not in options:
        return nullcontext()
    from peft_lightning.base_model.gguf_reading import reading_gguf

    return reading_gguf()
