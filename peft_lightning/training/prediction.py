"""Answers of a ``CausalLMModule`` to prompts, by the adapter in training or by several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft_lightning.adapters import attached_adapter
from peft_lightning.adapters.folder import read_adapter_config
from peft_lightning.base_model.tokenizer import adapter_tokenizer
from peft_lightning.data import PromptFormat
from peft_lightning.data.tokens.tokenizer import tokenizer_fingerprint
from peft_lightning.inference import generate
from peft_lightning.inference.load import named_folders
from peft_lightning.messages import UserError


def answer_with(module: Any, folders: list[str]) -> list[str]:
    """Let ``predict`` use the adapters of ``folders`` instead of the one that is trained.

    Args:
        module: The ``CausalLMModule``, before its model is built.
        folders: ``NAME=FOLDER`` each; a folder alone is its own name.

    Returns:
        The names, one of which is the ``adapter`` of each batch; ``base`` is no adapter.

    Raises:
        UserError: If they have different tokenizers: all rows go through one.
    """
    named = named_folders(folders)
    first, *others = named
    for name in others:
        if _tokens_of(module, named[name]) != _tokens_of(module, named[first]):
            raise UserError(
                f"{first} and {name} have different tokenizers, and predict reads all rows by one: "
                f"use generate --file FILE --adapter {first}={named[first]} --adapter ..."
            )
    module.answer_folders, module.tokenizer_folder = named, Path(named[first])
    return list(named)


def _tokens_of(module: Any, folder: str) -> str:
    """Return a hash of the tokenizer of an adapter's folder."""
    trust = module.trust_remote_code
    tokenizer = adapter_tokenizer(
        module.base_model_name, folder, trust_remote_code=trust, revision=module.revision
    )
    read_adapter_config(folder)[0].with_tokenizer(tokenizer)
    return tokenizer_fingerprint(tokenizer)


def predict_batch(module: Any, batch: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the greedy answer to each prompt of a padded batch, with the prompt's index.

    Args:
        module: The ``CausalLMModule``.
        batch: ``input_ids`` and ``attention_mask`` (B, T), ``index``, B integers, and, for a module
            with several adapters, ``adapter``, the name of the one that answers.
    """
    rows = [
        ids[mask.bool()].tolist()
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    by = {"adapter": batch["adapter"]} if module.bank is not None else {}
    if module.bank is not None:
        module.bank.use(batch["adapter"])
    answers = module.generate(rows, module.predict_max_new_tokens)
    return [{"index": i, "text": t, **by} for i, t in zip(batch["index"], answers, strict=True)]


def generate_texts(
    module: Any, prompts: list[list[int]] | list[str], max_new_tokens: int, **options: Any
) -> list[str]:
    """Return the greedy answers to prompts.

    Args:
        module: The ``CausalLMModule``.
        prompts: Texts, which become prompts as those of the training rows, or token ids.
        max_new_tokens: Length limit of an answer.
        **options: Those of ``generate_tokens``.
    """
    model, (tokenizer, prompt_format) = module.model, prompts_of(module)
    adapter = attached_adapter(model)
    options = {"prompt_format": prompt_format, **options}
    return generate.generate_texts(model, adapter, tokenizer, prompts, max_new_tokens, **options)


def prompts_of(module: Any) -> tuple[Any, PromptFormat]:
    """Return the tokenizer of a module's prompts, and how they are made.

    Both are those of the run's data; without, of the folder that the module was loaded from.
    """
    data: Any = getattr(module._trainer, "datamodule", None)
    if getattr(data, "prompt_format", None) is not None:
        return data.tokenizer, data.prompt_format
    return module.load_tokenizer(), getattr(module, "prompt_format", None) or PromptFormat()
