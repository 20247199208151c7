"""Answers of a ``CausalLMModule`` to prompts, by the adapter in training or by several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft_lightning.adapters import attached_adapter
from peft_lightning.adapters.folder import read_adapter_config
from peft_lightning.base_model.tokenizer import adapter_tokenizer
from peft_lightning.data import PromptEncoder, PromptFormat, assign_adapters
from peft_lightning.data.tokens.tokenizer import tokenizer_fingerprint
from peft_lightning.inference import generate
from peft_lightning.inference.answer_text import is_cut
from peft_lightning.inference.limits import check_prompts, most_prompt_tokens, too_long
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
    _check_all(module)
    by = {"adapter": batch["adapter"]} if module.bank is not None else {}
    if module.bank is not None:
        module.bank.use(batch["adapter"])
    most, (tokenizer, _) = module.predict_max_new_tokens, prompts_of(module)

    def count(_: list[int], ids: list[list[int]]) -> None:
        module.cut_answers += sum(is_cut(tokenizer, answer, most, module.stop) for answer in ids)

    answers = module.generate(rows, most, on_answers=count)
    return [{"index": i, "text": t, **by} for i, t in zip(batch["index"], answers, strict=True)]


def _check_all(module: Any) -> None:
    """Raise UserError if a prompt of ``predict`` is too long, before the first is answered."""
    data: Any = getattr(module._trainer, "datamodule", None)
    prompts = getattr(data, "predict_prompts", None)
    if not prompts or module.checked_prompts is prompts:
        return
    module.checked_prompts, module.cut_answers = prompts, 0
    tasks = assign_adapters(data.predict_records, data.predict_adapters)
    for name in dict.fromkeys(name for _, name in tasks):
        adapter = attached_adapter(module.model) if module.bank is None else module.bank.use(name)
        asked = {row for row, of_row in tasks if of_row == name}
        most = most_prompt_tokens(module.model, adapter, module.predict_max_new_tokens)
        for row, ids in prompts:
            if most is not None and row in asked and len(ids) > most:
                what = too_long(module.model, len(ids), most, module.predict_max_new_tokens)
                raise UserError(
                    f"row {row + 1} of data.predict {what}: give less model.predict_max_new_tokens,"
                    " or leave it out"
                )


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
    options = {"prompt_format": prompt_format, "stop": module.stop, **options}
    return generate.generate_texts(model, adapter, tokenizer, prompts, max_new_tokens, **options)


def require_room(module: Any, prompts: list[str], max_new_tokens: int) -> None:
    """Raise UserError if the model cannot answer one of ``prompts``.

    Args:
        module: The ``CausalLMModule``.
        prompts: Texts, which become prompts as those of the training rows.
        max_new_tokens: Length limit of an answer.
    """
    tokenizer, prompt_format = prompts_of(module)
    encoder = PromptEncoder(tokenizer, prompt_format)
    rows = [encoder.encode(prompt) for prompt in prompts]
    try:
        check_prompts(module.model, attached_adapter(module.model), rows, max_new_tokens)
    except UserError as error:
        raise UserError(f"model.sample_prompts: {error}") from None


def prompts_of(module: Any) -> tuple[Any, PromptFormat]:
    """Return the tokenizer of a module's prompts, and how they are made.

    Both are those of the run's data; without, of the folder that the module was loaded from.
    """
    data: Any = getattr(module._trainer, "datamodule", None)
    if getattr(data, "prompt_format", None) is not None:
        return data.tokenizer, data.prompt_format
    return module.load_tokenizer(), getattr(module, "prompt_format", None) or PromptFormat()
