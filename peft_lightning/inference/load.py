"""Loading a base model, its tokenizer and adapters for inference."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_lightning.adapters.bank import BASE, AdapterBank
from peft_lightning.adapters.folder import read_adapter
from peft_lightning.adapters.full import Full
from peft_lightning.base_model import base_fingerprint, load_base_model
from peft_lightning.base_model.load import find_device
from peft_lightning.base_model.tokenizer import adapter_tokenizer, require_tokens_fit
from peft_lightning.data import PromptFormat, set_template
from peft_lightning.hub import adapter_folder
from peft_lightning.inference.generate import generate_tokens
from peft_lightning.kernels.float32_compute import compute_as_the_run
from peft_lightning.kernels.precision import choice_of, emulation_notice
from peft_lightning.messages import UserError


class Tokenizers(dict[str, Any]):
    """Tokenizers by the names of adapters; the base's is loaded when it is asked for.

    Args:
        load_base: Loads that of the base.
    """

    def __init__(self, load_base: Callable[[], Any]) -> None:
        super().__init__()
        self._load_base = load_base

    def __missing__(self, name: str) -> Any:
        assert name == BASE, name
        self[BASE] = self._load_base()
        return self[BASE]


@dataclass(frozen=True)
class InferenceModel:
    """A base model, and the adapters over it to switch between.

    Args:
        model: The base model.
        bank: The adapters by name.
        tokenizers: The tokenizer for each name of ``bank``: that of the adapter's folder, or the
            base's with what the adapter adds.
        prompt_formats: How prompts are made for each name of ``bank``, as its adapter was trained;
            ``base`` answers the prompts of the first adapter.
        fingerprint: Fingerprint of the base model.
        quantization: 4bit, 8bit, or None.
    """

    model: Any
    bank: AdapterBank
    tokenizers: Tokenizers
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
    whole, of_tokenizer = None, model
    for name, (adapter, _, facts) in found.items():
        of_tokenizer = of_tokenizer or facts["base_model"]
        if isinstance(adapter, Full):
            if model is not None or len(named) > 1:
                other = f"--base_model {model}" if model else "other adapters"
                raise UserError(f"{named[name]} is a whole model: give it without {other}")
            model, whole, named = named[name], named[name], {}
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
    base = load_base_model(model, dtype=dtype, device=device, quantization=quantization, **options)
    if (choice := choice_of(base)) and (notice := emulation_notice(choice, "--dtype auto")):
        print(notice, file=sys.stderr)
    fingerprint = base_fingerprint(base)
    compute_as_the_run(base, None)
    bank = AdapterBank(base, fingerprint, allow_base_mismatch)
    place = of_tokenizer or model

    def tokenizer_in(name: str, folder: str | None) -> Any:
        own = formats[name]
        bank.use(name)
        tokenizer = adapter_tokenizer(place, folder, own.tokenizer, **options)
        set_template(tokenizer, own.chat_template)  # whose tokens end an answer
        if folder is None and tokenizer.chat_template is None and tokenizers:
            tokenizer.chat_template = next(iter(tokenizers.values())).chat_template
        if (whose := own.tokenizer or folder) is not None:
            require_tokens_fit(tokenizer, base, whose, place)
        return tokenizer

    tokenizers = Tokenizers(lambda: tokenizer_in(BASE, whole))
    for name, folder in named.items():
        bank.add(name, folder, found[name])
        tokenizers[name] = tokenizer_in(name, folder)
        found[name].adapter.with_tokenizer(tokenizers[name])
        bank.use(BASE)
    return InferenceModel(base, bank, tokenizers, formats, fingerprint, quantization)


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
