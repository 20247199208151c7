"""The tokenizer of a run: which one it is, and what of it is in the checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from peft_lightning.adapters.base import tokenizer_files
from peft_lightning.adapters.folder import Texts, read_adapter_config
from peft_lightning.base_model.resolve import brings_tokenizer
from peft_lightning.base_model.tokenizer import adapter_tokenizer, require_tokens_fit
from peft_lightning.data import PromptFormat, set_template
from peft_lightning.data.prompt_format import FACT
from peft_lightning.inference.stop_tokens import with_end_tokens
from peft_lightning.messages import UserError, shortened

_TEMPLATE, _CONFIG = "chat_template.jinja", "tokenizer_config.json"


def tokenizer_of(module: Any) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a ``CausalLMModule`` with the new tokens of its adapter.

    It is that of the adapter's folder where training starts from one, or one is evaluated; else the
    base's. Loaded once, by the data module before the model is.

    Raises:
        UserError: If the base is a loaded model that does not say where it is from.
    """
    if module.tokenizer is None:
        folder = _folder_of_tokenizer(module)
        nameless = module.given_base is not None and not module.given_base.model.name_or_path
        if nameless and not (folder and brings_tokenizer(folder)):
            raise UserError(
                f"the base model is a loaded {module.base_model_name} without a name_or_path to "
                "find its tokenizer by: give SFTDataModule(tokenizer=...), or set module.tokenizer"
            )
        module.tokenizer = adapter_tokenizer(
            module.base_model_name,
            folder,
            trust_remote_code=module.trust_remote_code,
            revision=module.revision,
        )
        if module.prompt_format is not None:
            set_template(module.tokenizer, module.prompt_format.chat_template)
        if folder is not None:
            _take_new_tokens(module, folder)
        if not module.answer_folders:
            module.adapter = module.adapter.with_tokenizer(module.tokenizer)
    return module.tokenizer


def _take_new_tokens(module: Any, folder: Path) -> None:
    """Add the new tokens of a folder's adapter, which the configured one then has with their ids.

    Raises:
        UserError: If others are configured.
    """
    saved = read_adapter_config(folder)[0].with_tokenizer(module.tokenizer)
    given, known = (getattr(a, "new_tokens", None) for a in (module.adapter, saved))
    if isinstance(given, list) and known and not module.answer_folders:
        if given != list(known):
            raise UserError(
                f"model.adapter has new_tokens {shortened(given)}, and {folder} was trained with "
                f"another adapter (new_tokens: {shortened(list(known))})"
            )
        module.adapter = replace(module.adapter, new_tokens=known)


def extend_tokenizer(module: Any, tokenizer: Any) -> None:
    """Add the new tokens of a module's adapter to another tokenizer, with the model's ids.

    The tokenizer of a loaded model is the one that is given first, in hand as the model is.
    """
    if module.given_base is not None and module.tokenizer is None:
        module.tokenizer = tokenizer
        module.adapter = module.adapter.with_tokenizer(tokenizer)
        return
    tokenizer_of(module)
    module.adapter.with_tokenizer(tokenizer)


def require_its_tokens(module: Any, model: Any) -> None:
    """Raise UserError if a tokenizer that is not the base's gives ids that ``model`` has not."""
    data: Any = getattr(module._trainer, "datamodule", None)
    named, folder = getattr(data, "tokenizer_name", None), _folder_of_tokenizer(module)
    tokenizer = data.tokenizer if named is not None else module.tokenizer
    if tokenizer is not None and (named is not None or folder is not None):
        name = getattr(named, "name_or_path", named) or folder or "data.tokenizer"
        require_tokens_fit(tokenizer, model, name, module.base_model_name)


def _folder_of_tokenizer(module: Any) -> Path | None:
    folder: Path | None = module.tokenizer_folder or module.init_from
    return folder


def prompt_facts(module: Any) -> dict[str, Any]:
    """Return how the prompts of the run's rows were made, for ``peft_lightning.json``.

    Without the name of the tokenizer, which is in the folder. If the folder's chat template has the
    run's options as its defaults, the one without them is here, to which others can be given.
    """
    tokenizer, prompt_format = _of_run(module)
    facts = prompt_format.facts()
    facts.pop("tokenizer", None)
    source = _source(tokenizer, prompt_format)
    if isinstance(source, str) and prompt_format.in_template(source) != source:
        facts["chat_template"] = source
    return {FACT: facts} if facts else {}


class RunTokenizer:
    """Makes the files of a run's tokenizer once, and again when it has changed."""

    def __init__(self) -> None:
        self._made: tuple[Any, ...] = ()
        self._files: Texts = {}

    def files(self, module: Any) -> Texts:
        """Return the content of the files by name; none for a module without a tokenizer.

        Args:
            module: The ``CausalLMModule``.
        """
        tokenizer, prompt_format = _of_run(module)
        if tokenizer is None:
            return {}
        source = _source(tokenizer, prompt_format)
        template = prompt_format.in_template(source) if isinstance(source, str) else source
        made = (id(tokenizer), len(tokenizer), str(template))
        if made != self._made:
            files = tokenizer_files(tokenizer)
            config = json.loads(files[_CONFIG])
            files.pop(_TEMPLATE, None)
            if not isinstance(template, dict):
                config.pop("chat_template", None)
                files[_CONFIG] = json.dumps(config, indent=2, ensure_ascii=False)
            if isinstance(template, str):
                files[_TEMPLATE] = template
            self._made, self._files = made, files
        return self._files

    def with_its_ends(self, module: Any, values: dict[str, Any]) -> dict[str, Any]:
        """Return the content of a generation config with every token that ends an answer."""
        tokenizer, _ = _of_run(module)
        return values if tokenizer is None else with_end_tokens(values, tokenizer)[0]


def _of_run(module: Any) -> tuple[Any, PromptFormat]:
    data: Any = getattr(module._trainer, "datamodule", None)
    if (prompt_format := getattr(data, "prompt_format", None)) is not None:
        return data.tokenizer, prompt_format
    return module.tokenizer, PromptFormat()


def _source(tokenizer: Any, prompt_format: PromptFormat) -> Any:
    """Return the source of the rows' chat template, several by name, or None for plain text."""
    if prompt_format.chat_template == "none":
        return None
    return prompt_format.chat_template or getattr(tokenizer, "chat_template", None)
