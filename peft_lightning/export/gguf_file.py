"""What is exported of a folder, and writing its LoRA as a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from peft_lightning.adapters.base_check import require_base
from peft_lightning.adapters.folder import CONFIG_FILE, SavedAdapter, read_adapter
from peft_lightning.adapters.lora.merge_extra_modules import has_extra_modules
from peft_lightning.adapters.merge import require_lora
from peft_lightning.base_model import base_fingerprint, load_base_model
from peft_lightning.base_model.load_errors import explained
from peft_lightning.base_model.resolve import locate
from peft_lightning.base_model.tokenizer import adapter_tokenizer
from peft_lightning.base_model.weights import NotStreamableError, open_weights
from peft_lightning.data import PromptFormat
from peft_lightning.export.gguf import OWN_KEY, write_lora
from peft_lightning.export.gguf_layout import Layout
from peft_lightning.export.gguf_tokenizer import require_known
from peft_lightning.export.unverified import UNVERIFIED
from peft_lightning.files import Kind, atomic_file, marked_file
from peft_lightning.hub import adapter_folder
from peft_lightning.messages import UserError


def _is_unverified(file: Path) -> bool:
    return Path(f"{file}.{UNVERIFIED}").is_file()


GGUF = Kind("GGUF file", marked_file(OWN_KEY), _is_unverified)


def read_checkpoint(
    ckpt_path: str, base_model: str | None
) -> tuple[str, str | None, SavedAdapter | None]:
    """Return the base model, the adapter's folder and its content; the last two None for a model.

    Args:
        ckpt_path: Folder of an adapter or of a model.
        base_model: The base, if not the one that the adapter names.

    Raises:
        UserError: If the adapter is not a LoRA or names no base, or a model comes with another.
    """
    if Path(ckpt_path, "config.json").is_file() and not Path(ckpt_path, CONFIG_FILE).is_file():
        if base_model is not None:
            raise UserError(
                f"{ckpt_path} is a whole model: give it without --base_model {base_model}"
            )
        return ckpt_path, None, None
    saved = read_adapter(ckpt_path := str(adapter_folder(ckpt_path)))
    require_lora(saved.adapter, "a GGUF file", ckpt_path)
    if not (base := base_model or saved.facts["base_model"]):
        raise UserError(f"{ckpt_path} does not name its base model: give it with --base_model")
    return base, ckpt_path, saved


def require_supported(
    base: str,
    folder: str | None,
    prompts: PromptFormat,
    pre: str | None,
    options: dict[str, Any],
) -> None:
    """Raise UserError if llama.cpp lacks the architecture or the tokenizer, before any work.

    Args:
        base: The base model.
        folder: The adapter's, which may bring a tokenizer; None for a base alone.
        prompts: May name another tokenizer.
        pre: llama.cpp's name of the pre-tokenizer; found from the tokenizer if None.
        options: ``trust_remote_code`` and ``revision`` of the base.
    """
    source, where = locate(base, options["revision"])
    trust = options["trust_remote_code"]
    with explained("base model", base, where):
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust, **where)
    Layout(config)
    if "gguf_file" not in where:
        require_known(adapter_tokenizer(base, folder, prompts.tokenizer, **options), pre)


def write_adapter_file(
    out: Path,
    base: str,
    folder: str | None,
    saved: SavedAdapter | None,
    dtype: torch.dtype | None,
    allow_base_mismatch: bool,
    options: dict[str, Any],
) -> None:
    """Write the LoRA alone.

    Args:
        out: The file to write.
        base: The base model.
        folder: The adapter's folder; None if ``base`` is a whole model, which is an error.
        saved: Content of ``folder``.
        dtype: Data type of the factors; float32 if None.
        allow_base_mismatch: Whether to accept an adapter of another base.
        options: ``trust_remote_code`` and ``revision`` of the base.

    Raises:
        UserError: If there is no adapter, or it does not fit the base.
    """
    if folder is None or saved is None:
        raise UserError(f"{base} is a whole model and no LoRA: export it with --type model")
    adapter, tensors, facts = saved
    model: Any
    try:
        if has_extra_modules(tensors):
            raise NotStreamableError("what is saved whole is compared with the base's")
        weights = open_weights(base, **options)
        Layout((model := weights.model).config)  # before all of the base is read
        fingerprint = weights.fingerprint()
    except NotStreamableError:
        model = load_base_model(base, **options)
        fingerprint = base_fingerprint(model)
    if not allow_base_mismatch:
        require_base(folder, facts, fingerprint)
    with atomic_file(out) as file:
        lora = require_lora(adapter, "a GGUF file", folder)
        write_lora(file, model, lora, tensors, dtype or torch.float32)
