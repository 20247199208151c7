"""The tokenizer of a merged model: that of the adapter, if its folder brings one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft_lightning.base_model import load_tokenizer
from peft_lightning.base_model.resolve import brings_tokenizer, tokenizer_files_in
from peft_lightning.base_model.tokenizer import adapter_tokenizer, require_tokens_fit
from peft_lightning.messages import UserError


def tokenizer_to_merge(
    base: str,
    ckpt_path: str,
    named: str | None,
    adapter: Any,
    model: Any,
    options: dict[str, Any],
) -> Any:
    """Return the tokenizer of an adapter, with its new tokens.

    Args:
        base: Hub id, folder or GGUF file of the base.
        ckpt_path: The adapter's folder.
        named: The tokenizer that the user gives; None for the adapter's.
        adapter: The adapter.
        model: The base with the adapter, or without weights.
        options: ``trust_remote_code`` and ``revision``, for the base.

    Raises:
        UserError: If there is none, or it gives ids that the model has no embedding for.
    """
    tokenizer = adapter_tokenizer(base, ckpt_path, named, **options)
    adapter.with_tokenizer(tokenizer)
    if named is not None or brings_tokenizer(Path(ckpt_path)):
        require_tokens_fit(tokenizer, model, named or ckpt_path, base)
    return tokenizer


def put_tokenizer(folder: Path, ckpt_path: str, given: Any = None) -> None:
    """Put the tokenizer files of an adapter's folder in the place of the base's in ``folder``.

    Where the tokens are the base's, its other files stay, such as a tokenizer.model, which
    programs that do not read tokenizer.json need.

    Args:
        folder: The merged model's.
        ckpt_path: The adapter's.
        given: A tokenizer to write instead; None for the adapter's.
    """
    if given is not None:
        for name in tokenizer_files_in(folder):
            (folder / name).unlink()
        given.save_pretrained(folder)
        return
    own = tokenizer_files_in(Path(ckpt_path))
    if brings_tokenizer(Path(ckpt_path)) and not _have_same_tokens(folder, ckpt_path):
        for name in tokenizer_files_in(folder):
            (folder / name).unlink()
    elif "tokenizer_config.json" in own:
        (folder / "chat_template.jinja").unlink(missing_ok=True)  # the adapter may have none
    for name, content in own.items():
        (folder / name).write_bytes(content)


def _have_same_tokens(folder: Path, ckpt_path: str) -> bool:
    try:
        of_base = load_tokenizer(str(folder)).get_vocab()
    except UserError:  # it has none, or brings code
        return False
    return of_base == load_tokenizer(ckpt_path).get_vocab()
