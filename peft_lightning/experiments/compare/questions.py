"""The prompts that every run answers: of the first validation rows, or of a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft_lightning.data import PromptFormat, RowOptions
from peft_lightning.experiments.compare.validation_rows import ValidationRows
from peft_lightning.files import sha256_of_json
from peft_lightning.inference.prompts import Prompts, read_prompts


@dataclass(frozen=True)
class Questions:
    """Prompts with the answers that are right, where those are known.

    Args:
        texts: The prompts, for a reader.
        references: Their right answers; None where there is none.
        rows: The validation row of each; empty for those of a file.
        ids: Their tokens, for prompts of validation rows.
        prompts: Those of a file, which become tokens as each run's prompts do.
        name: Where they are from.
    """

    texts: list[str] = field(default_factory=list)
    references: list[str | None] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    prompts: Prompts | None = None
    name: str = ""

    def __len__(self) -> int:
        return len(self.texts)

    def tokens(self, tokenizer: Any, prompt_format: PromptFormat) -> list[list[int]]:
        """Return the token ids of the prompts.

        Raises:
            UserError: If a prompt of a file cannot be encoded.
        """
        if self.prompts is None:
            return self.ids
        return self.prompts.encode(tokenizer, prompt_format)[: len(self)]

    @property
    def hash(self) -> str:
        """A hash of the prompts."""
        return sha256_of_json([self.texts, self.ids])


def questions_of_rows(rows: ValidationRows, most: int) -> Questions:
    """Return the first ``most`` validation rows that have a prompt."""
    picked = [i for i, prompt in enumerate(rows.prompts) if prompt is not None][:most]
    return Questions(
        [rows.prompt_text(i) for i in picked],
        [rows.references[i] for i in picked],
        picked,
        [rows.prompts[i] or [] for i in picked],
        name=rows.name,
    )


def questions_of_file(file: str, prompt_format: PromptFormat, most: int | None) -> Questions:
    """Return the prompts of a file: a .txt file with one a line, or rows as for training.

    Args:
        file: Its path. Rows may have their answers, which are then the right ones.
        prompt_format: How the runs' prompts are made; decides how a row is read.
        most: Largest number of prompts; None for all.

    Raises:
        UserError: If there is no prompt, or a row cannot be read.
    """
    prompts = read_prompts(None, file, RowOptions())
    asked = prompts.rows(prompt_format)[:most]
    references = [_reference(record) for record in prompts.records[:most]]
    return Questions([_text(row) for row in asked], references, prompts=prompts, name=file)


def _text(row: Any) -> str:
    messages = getattr(row, "messages", None)
    if messages:
        return "\n".join(f"{m['role']}: {m.get('content') or ''}" for m in messages)
    return "".join(text for text, *_ in row.parts)


def _reference(record: dict[str, Any]) -> str | None:
    """Return the right answer that a record has, as a text or in the last message of a list."""
    for name in ("completion", "output", "answer", "response", "reference"):
        if isinstance(value := record.get(name), str):
            return value.strip()
    for name in ("messages", "conversations"):
        turns = record.get(name)
        last = turns[-1] if isinstance(turns, list) and turns else None
        if isinstance(last, dict) and last.get("role", last.get("from")) in ("assistant", "gpt"):
            return str(last.get("content", last.get("value", ""))).strip()
    return None
