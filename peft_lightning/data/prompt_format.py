"""How prompts are made of what is asked: kept with an adapter, and used where it answers."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from peft_lightning.data.options import RowOptions, TokenOptions
from peft_lightning.data.rows.column_paths import root_of
from peft_lightning.data.rows.columns import PromptTemplate
from peft_lightning.data.tokens.template_defaults import with_defaults
from peft_lightning.data.tokens.template_sources import is_template_source, with_date
from peft_lightning.messages import UserError

FACT = "prompts"  # the key in peft_lightning.json
TODAY = "today"  # as a date that is given


@dataclass(frozen=True)
class PromptFormat:
    """How a prompt becomes token ids, under the names of the options of data.

    An adapter answers best what has the form of its training rows, so its folder keeps this under
    "prompts" of ``peft_lightning.json``: the fields that differ from their defaults.

    Args:
        tokenizer: Hub id or folder of the tokenizer; None for that of the base model.
        chat_template: Source of the chat template, "none" for plain text; None for the tokenizer's.
        chat_template_kwargs: Variables of the chat template.
        template_date: Date, YYYY-MM-DD, that a chat template prints as today's; None for today.
        system_prompt: System message of the conversations that have none.
        prompt: Template of the prompt with columns in braces. The text of a prompt is the column,
            if there is one; else the text is the whole prompt.
        special_tokens_in_text: As of ``TokenOptions``.
        reasoning: As of ``TokenOptions``.
        system: As of ``TokenOptions``.

    Raises:
        UserError: If a field has a value that it cannot have.
    """

    tokenizer: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    template_date: str | None = None
    system_prompt: str | None = None
    prompt: str | None = None
    special_tokens_in_text: str = "encode"
    reasoning: str = "train"
    system: str = "keep"

    def __post_init__(self) -> None:
        with_date("", self.template_date)
        self.token_options()
        if self.prompt is not None:
            PromptTemplate(self.prompt)

    @classmethod
    def of_folder(cls, facts: Mapping[str, Any], folder: object) -> PromptFormat:
        """Return the format of the prompts that an adapter was trained with.

        Args:
            facts: The content of its ``peft_lightning.json``; without prompts, the default.
            folder: The folder, for the error.

        Raises:
            UserError: If the content is none that this release writes.
        """
        own = facts.get(FACT, {})
        known = {f.name: Mapping if "Mapping" in str(f.type) else str for f in fields(cls)}
        if not isinstance(own, Mapping):
            raise UserError(f"{folder}: {FACT} must be an object, got {own!r:.80}")
        for name, value in own.items():
            if name not in known:
                raise UserError(
                    f"{folder}: {FACT} has {name!r}, which this release does not know: install a"
                    " newer one"
                )
            if not isinstance(value, known[name]):
                raise UserError(f"{folder}: {name} of {FACT} cannot be {value!r:.80}")
        template = own.get("chat_template", "none")
        if template != "none" and not is_template_source(template):
            raise UserError(f"{folder}: chat_template must not name a file elsewhere")
        try:
            return cls(**own)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from None

    def with_given(self, given: Mapping[str, Any]) -> PromptFormat:
        """Return this format with options that the user gives, which win.

        Args:
            given: Fields with their values; None for one that was not given. Variables of the
            template are added to those that are there; the prompt "" is no template of the
            prompt, and the date "today" is today's.
        """
        new = {name: value for name, value in given.items() if value is not None}
        if "chat_template_kwargs" in new:
            kwargs = {**self.chat_template_kwargs, **new["chat_template_kwargs"]}
            new["chat_template_kwargs"] = kwargs
        for name, nothing in (("prompt", ""), ("template_date", TODAY)):
            if new.get(name) == nothing:
                new[name] = None
        return replace(self, **new)

    def facts(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults."""
        default = PromptFormat()
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {n: value for n, value in values.items() if value != getattr(default, n)}

    def in_template(self, source: str) -> str:
        """Return a chat template that does by itself what this format adds to ``source``."""
        system = self.system_prompt if self.system == "keep" else None
        return with_defaults(source, self.chat_template_kwargs, system, self.template_date)

    def beyond_template(self) -> PromptFormat:
        """Return what ``in_template`` leaves to whoever asks."""
        system = None if self.system == "keep" else self.system_prompt
        return replace(
            self,
            tokenizer=None,
            chat_template=None,
            chat_template_kwargs={},
            template_date=None,
            system_prompt=system,
        )

    def token_options(self) -> TokenOptions:
        """Return how conversations and text become token ids."""
        return TokenOptions(
            reasoning=self.reasoning,
            special_tokens_in_text=self.special_tokens_in_text,
            system=self.system,
            chat_template_kwargs=self.chat_template_kwargs,
            template_date=self.template_date,
        )

    def row_options(self, options: RowOptions, columns: Collection[str]) -> RowOptions:
        """Return how the records of a file are read.

        Args:
            options: The user's options of the file. Their template of the prompt wins. If they name
                the column of the prompt or another format, this format's is not used.
            columns: The columns of the file. Without those of the template it is not used.
        """
        prompt = self.prompt
        if "prompt" in options.columns or options.format not in ("auto", "prompt_completion"):
            prompt = None
        needed = PromptTemplate(prompt).columns if prompt else ()
        if not all(root_of(column, columns) in columns for column in needed):
            prompt = None
        return replace(options, system_prompt=self.system_prompt, prompt=options.prompt or prompt)

    @property
    def text_column(self) -> str | None:
        """The column of the template of the prompt, if it has one only."""
        columns = PromptTemplate(self.prompt).columns if self.prompt else ()
        return columns[0] if len(columns) == 1 else None

    def filled(self, text: str) -> str:
        """Return the prompt that asks ``text``."""
        if self.prompt is None or self.text_column is None:
            return text
        return PromptTemplate(self.prompt).fill({self.text_column: text}, [])

    def __str__(self) -> str:
        """Return the fields that differ from their defaults, for one line; "" for none."""
        shown = dict(self.facts())
        if is_template_source(source := shown.get("chat_template", "")):
            shown["chat_template"] = f"of its own ({len(source)} characters)"
        return ", ".join(f"{name} {_shown(value)}" for name, value in shown.items())


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    text = text.replace("\n", "\\n")
    return text if len(text) <= 60 else f"{text[:57]}..."
