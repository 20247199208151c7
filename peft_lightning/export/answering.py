"""How an exported model is asked and how its answers end: tokenizer, chat template, end tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft_lightning.adapters.folder import SavedAdapter
from peft_lightning.base_model.generation_config import values_of
from peft_lightning.base_model.resolve import locate
from peft_lightning.base_model.tokenizer import adapter_tokenizer
from peft_lightning.data import PromptFormat, set_template
from peft_lightning.inference.stop_tokens import with_end_tokens


@dataclass(frozen=True)
class Answering:
    """How a model is asked, and how its answers end.

    Args:
        tokenizer: With the chat template of the training rows.
        prompts: How these were made.
        ends: The ids that end an answer; the first are those of the base.
    """

    tokenizer: Any
    prompts: PromptFormat
    ends: list[int]

    @property
    def template(self) -> str | None:
        """The chat template with what the prompts add to it; None without one."""
        source = self.tokenizer.chat_template
        return self.prompts.in_template(source) if isinstance(source, str) else None

    @classmethod
    def of(
        cls,
        base: str,
        prompts: PromptFormat,
        options: dict[str, Any],
        folder: str | None = None,
        saved: SavedAdapter | None = None,
    ) -> Answering:
        """Return how a base, with an adapter or not, is asked.

        Args:
            base: The base model.
            prompts: How the prompts of the training rows were made.
            options: ``trust_remote_code`` and ``revision`` of the base.
            folder: The adapter's, whose tokenizer is taken if it brings one.
            saved: Its content.

        Raises:
            UserError: If there is no tokenizer.
        """
        source, where = locate(base, options["revision"])
        tokenizer = adapter_tokenizer(base, folder, prompts.tokenizer, **options)
        if saved is not None:
            saved.adapter.with_tokenizer(tokenizer)
        set_template(tokenizer, prompts.chat_template)
        own = {} if "gguf_file" in where else values_of(source, where)
        ends = with_end_tokens(own, tokenizer)[0].get("eos_token_id", [])
        return cls(tokenizer, prompts, ends if isinstance(ends, list) else [ends])
