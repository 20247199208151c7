"""Loading a base model, its tokenizer and adapters for inference."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_lightning.adapters.bank import BASE, AdapterBank
from peft_lightning.adapters.folder import read_adapter
from peft_lightning.adapters.full import Full
from peft_lightning.base_model import base_fingerprint, load_base_model, load_tokenizer
from peft_lightning.base_model.load import find_device
from peft_lightning.data import PromptFormat, set_template
from peft_lightning.data.tokens.tokenizer import load_tokenizer as load_named_tokenizer
from peft_lightning.hub import adapter_folder
from peft_lightning.inference.generate import generate_tokens
from peft_lightning.kernels.float32_compute import compute_as_the_run
from peft_lightning.kernels.precision import choice_of, emulation_notice
from peft_lightning.messages import UserError


@dataclass(frozen=True)
class InferenceModel:
    """A base model, and the adapters over it to switch between.

    Args:
        model: The base model.
        bank: The adapters by name.
        tokenizers: The tokenizer for each name of ``bank``; an adapter with new tokens or a chat
            template of its own has a copy that knows them.
        prompt_formats: How prompts are made for each name of ``bank``, as its adapter was trained;
            ``base`` answers the prompts of the first adapter.
        fingerprint: Fingerprint of the base model.
        quantization: 4bit, 8bit, or None.
    """

    model: Any
    bank: AdapterBank
    tokenizers: dict[str, Any]
    prompt_formats: dict[str, PromptFormat]
    fingerprint: dict[str, Any]
    quantization: str | None = None

    @property
    def names(self) -> list[str]:
        """The names of the adapters that were loaded; ``base`` alone if there is none."""
        return self.bank.names[1:] or [BASE]

    def generate(
        self, name: str, rows: Sequence[Sequence[int]], max_new_tokens: int, **options: Any
    ) -> list[list[int]]:
        """Answer token ids with the adapter ``name``.

        Args:
            name: An adapter of ``bank``.
            rows: Token ids of each prompt.
            max_new_tokens: Largest number of tokens of an answer.
            **options: Those of ``generate_tokens``.
        """
        adapter, tokenizer = self.bank.use(name), self.tokenizers[name]
        return generate_tokens(self.model, adapter, tokenizer, rows, max_new_tokens, **options)


def load_inference_model(
    base_model: str | None,
    folders: Mapping[str, str],
    *,
    prompt_formats: Mapping[str, PromptFormat] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    allow_base_mismatch: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
    quantization: str | None = None,
) -> InferenceModel:
    """Load a base model and adapters.

    Args:
        base_model: The base model; None for the one that the adapters name.
        folders: The folder of each adapter by its name, as ``named_folders`` returns them, or that
            of a fully fine-tuned model alone.
        prompt_formats: How prompts are made for each adapter, or for ``base`` if there is none;
            None for as they were trained.
        dtype: Data type of the base's weights; auto for the saved one if the processor multiplies
            that, else float32.
        device: auto for the GPU if there is one.
        allow_base_mismatch: Whether to accept adapters that were trained on another base.
        trust_remote_code: Whether code that comes with the model may run.
        revision: Branch, tag or commit of a hub id.
        quantization: 4bit, 8bit, or None for the base as saved.

    Raises:
        UserError: If there is no base model, an adapter does not fit it, or an option is wrong.
    """
    model, named = base_model, dict(folders)
    found = {name: read_adapter(folder) for name, folder in named.items()}
    formats = dict(prompt_formats or {})
    if not formats:
        formats = {n: PromptFormat.of_folder(found[n].facts, named[n]) for n in named}
    formats.setdefault(BASE, next(iter(formats.values()), PromptFormat()))
    tokenizer_name = model
    for name, (adapter, _, facts) in found.items():
        if isinstance(adapter, Full):
            if model is not None or len(named) > 1:
                other = f"--base_model {model}" if model else "other adapters"
                raise UserError(f"{named[name]} is a whole model: give it without {other}")
            has_tokenizer = Path(named[name], "tokenizer_config.json").is_file()
            tokenizer_name = named[name] if has_tokenizer else facts["base_model"]
            model, named = named[name], {}
            break
        model = model or facts["base_model"]
    if model is None:
        raise UserError(
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
    tokenizers = {BASE: _tokenizer_of(tokenizer, formats[BASE])}
    for name, folder in named.items():
        bank.add(name, folder, found[name])
        tokenizers[name] = tokenizers[BASE]
        has_tokens = bool(found[name].adapter.metadata().get("new_tokens"))
        if has_tokens or formats[name].tokenizes_otherwise(formats[BASE]):
            tokenizers[name] = _tokenizer_of(copy.deepcopy(tokenizer), formats[name])
        if has_tokens:
            found[name].adapter.with_tokenizer(tokenizers[name])
    return InferenceModel(base, bank, tokenizers, formats, fingerprint, quantization)


def _tokenizer_of(tokenizer: Any, prompt_format: PromptFormat) -> Any:
    """Return the tokenizer of the prompts, which is ``tokenizer`` unless they name another one.

    It gets their chat template, whose tokens end an answer.
    """
    if prompt_format.tokenizer is not None:
        tokenizer = load_named_tokenizer(prompt_format.tokenizer)
    set_template(tokenizer, prompt_format.chat_template)
    return tokenizer


def named_folders(folders: Sequence[str] | None, ckpt_path: str | None = None) -> dict[str, str]:
    """Return the folders of ``NAME=FOLDER`` by name; a folder alone is its own name.

    A folder may be ``owner/name@revision`` on the hub.

    Args:
        folders: The adapters.
        ckpt_path: Another one, which is the first.

    Raises:
        UserError: If two adapters have the same name.
        FileNotFoundError: If a folder does not exist.
    """
    named = {}
    folders = [*([ckpt_path] if ckpt_path else []), *(folders or [])]
    for folder in folders:
        name, equals, path = folder.partition("=")
        is_named = equals and "/" not in name and not Path(folder).is_dir()
        named.update({name: path} if is_named else {folder: folder})
    if len(named) < len(folders):
        raise UserError(f"two adapters have one name: {', '.join(folders)}")
    return {name: str(adapter_folder(folder)) for name, folder in named.items()}
