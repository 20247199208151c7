"""The generation config of a written folder: valid, with every token that ends an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft_lightning.adapters.base import as_json
from peft_lightning.base_model import load_tokenizer
from peft_lightning.base_model.generation_config import FILE, read_values
from peft_lightning.inference.stop_tokens import with_end_tokens
from peft_lightning.messages import UserError


def complete_generation_config(folder: Path, options: dict[str, Any]) -> list[str]:
    """Rewrite the generation config of a model's folder for programs that know no chat template.

    Args:
        folder: Holds the model, its tokenizer and chat template.
        options: ``trust_remote_code`` of the tokenizer; others are left alone.

    Returns:
        What was left out as invalid, each with the reason.
    """
    try:
        tokenizer = load_tokenizer(str(folder), trust_remote_code=options["trust_remote_code"])
    except UserError:  # the base has none
        return []
    values, left_out = with_end_tokens(read_values(folder), tokenizer)
    (folder / FILE).write_text(f"{as_json(values)}\n", encoding="utf-8")
    return left_out
