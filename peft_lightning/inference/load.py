"""A base model, its tokenizer and the adapters over it, loaded to answer prompts."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_lightning.adapters.bank import BASE, AdapterBank
from peft_lightning.adapters.folder import read_adapter
from peft_lightning.adapters.full import Full
from peft_lightning.base_model import base_fingerprint, load_base_model, load_tokenizer
from peft_lightning.base_model.load import find_device
from peft_lightning.hub import adapter_folder
from peft_lightning.kernels.float32_compute import compute_as_the_run
from peft_lightning.kernels.precision import choice_of, emulation_notice


@dataclass(frozen=True)
class InferenceModel:
    """What answers: a model and the adapters to switch between.

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        bank: The adapters by name.
        fingerprint: Of the base.
        tokenizers: The tokenizer for each name of ``bank``: with new tokens a copy that has them.
    """

    model: Any
    tokenizer: Any
    bank: AdapterBank
    fingerprint: dict[str, Any]
    tokenizers: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """The adapters that were asked for; ``base`` if none was."""
        return self.bank.names[1:] or [BASE]


def load_inference_model(
    model: str | None,
    folders: Sequence[str],
    *,
    dtype: str = "auto",
    device: str = "auto",
    allow_base_mismatch: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
    quantization: str | None = None,
) -> InferenceModel:
    """Load a base model and adapters.

    Args:
        model: The base; None for the one that the adapters name.
        folders: Adapters, ``NAME=FOLDER`` or a folder, which is its own name then; or one folder
            of a fully fine-tuned model.
        dtype: Of the base's weights; auto as saved if the processor multiplies that, else float32.
        device: auto for the GPU if there is one.
        allow_base_mismatch: Whether to use adapters of other bases.
        trust_remote_code: Whether code that comes with the model may run.
        revision: Of a hub id.
        quantization: 4bit, 8bit, or None for the base as saved.

    Raises:
        ValueError: If there is no base model, or something does not fit.
    """
    named = named_folders(folders)
    found = {name: read_adapter(folder) for name, folder in named.items()}
    tokenizer_name = model
    for name, (adapter, _, facts) in found.items():
        if isinstance(adapter, Full):
            if model is not None or len(named) > 1:
                other = f"--base_model {model}" if model else "other adapters"
                raise ValueError(f"{named[name]} is a whole model: give it without {other}")
            has_tokenizer = Path(named[name], "tokenizer_config.json").is_file()
            tokenizer_name = named[name] if has_tokenizer else facts["base_model"]
            model, named = named[name], {}
            break
        model = model or facts["base_model"]
    if model is None:
        raise ValueError(
            f"{next(iter(named.values()))} does not name its base model: give it with --base_model"
            if named
            else "give --ckpt_path, an adapter's folder, or --base_model, a base model, or both"
        )
    device = find_device(device)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision}
    tokenizer = load_tokenizer(tokenizer_name or model, **options)
    base = load_base_model(model, dtype=dtype, device=device, quantization=quantization, **options)
    if (choice := choice_of(base)) and (notice := emulation_notice(choice, "--dtype auto")):
        print(notice, file=sys.stderr)
    fingerprint = base_fingerprint(base)
    compute_as_the_run(base, None)
    bank = AdapterBank(base, fingerprint, allow_base_mismatch)
    tokenizers = {BASE: tokenizer}
    for name, folder in named.items():
        bank.add(name, folder, found[name])
        tokenizers[name] = tokenizer
        if found[name].adapter.metadata().get("new_tokens"):
            tokenizers[name] = copy.deepcopy(tokenizer)
            found[name].adapter.with_tokenizer(tokenizers[name])
    return InferenceModel(base, tokenizer, bank, fingerprint, tokenizers)


def named_folders(folders: Sequence[str]) -> dict[str, str]:
    """Return the folders of ``NAME=FOLDER`` by name; a folder alone is its own name.

    A folder may be the hub's ``owner/name@revision``.

    Raises:
        ValueError: If two have one name.
        FileNotFoundError: If one is not there.
    """
    named = {}
    for folder in folders:
        name, equals, path = folder.partition("=")
        is_named = equals and "/" not in name and not Path(folder).is_dir()
        named.update({name: path} if is_named else {folder: folder})
    if len(named) < len(folders):
        raise ValueError(f"two adapters have one name: {', '.join(folders)}")
    return {name: str(adapter_folder(folder)) for name, folder in named.items()}
