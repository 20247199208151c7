"""Prompts from the command line or a file: read once, then encoded for each tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from peft_lightning.data import (
    Conversation,
    PlainText,
    Row,
    RowError,
    detect_format,
    find_source,
    prompt_from_record,
)
from peft_lightning.data.options import TokenOptions
from peft_lightning.data.tokenization import RowTokenizer
from peft_lightning.files import read_text
from peft_lightning.messages import UserError


@dataclass(frozen=True)
class Prompt:
    """A row to answer.

    Args:
        record: The row as it is in the file.
        row: Its messages or text, without the answer.
        where: File and line, or the number of the prompt, for error messages.
    """

    record: dict[str, Any]
    row: Row
    where: str


def read_prompts(
    texts: Sequence[str] | None,
    file: str | None,
    format_name: str = "auto",
    system: str | None = None,
) -> list[Prompt]:
    """Read prompts from texts or from a file.

    Args:
        texts: Prompts of the command line; None for those of ``file``.
        file: A .txt file with one prompt per line, or rows as for training, in which the answers
            may be missing.
        format_name: Format of the rows: auto, a format's name, or a dotted path.
        system: System message for conversations that have none.

    Raises:
        UserError: If there are no prompts, or a row is malformed; the message names its line.
    """
    if file is not None and file.endswith(".txt"):
        texts = [line for line in read_text(file).splitlines() if line.strip()]
    found: Iterable[tuple[Any, str]]
    if texts is not None:
        found = (({"prompt": text}, f"prompt {i}") for i, text in enumerate(texts, start=1))
        format_name = "prompt_completion"
    else:
        assert file is not None
        found = find_source(file).records()
    prompts = list(_parsed(found, format_name, str(file), system))
    if not prompts:
        raise UserError(f"there is no prompt in {file or '--prompt'}")
    return prompts


def encode_prompts(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase
) -> list[list[int]]:
    """Return the token ids of each prompt, in the chat template of ``tokenizer``.

    Raises:
        UserError: If the chat template refuses a prompt; the message names its line.
    """
    rows = []
    row_tokenizer = RowTokenizer(tokenizer, options=TokenOptions(template_date=None))
    for prompt in prompts:
        try:
            rows.append(row_tokenizer.encode_prompt(prompt.row))
        except RowError as error:
            raise UserError(f"{prompt.where}: {error}") from error
    return rows


def _parsed(
    found: Iterable[tuple[Any, str]], format_name: str, file: str, system: str | None
) -> Iterator[Prompt]:
    for record, where in found:
        try:
            if isinstance(record, RowError):
                raise record
            if format_name == "auto":
                format_name = detect_format(list(record), file, prompts_only=True)
            row = prompt_from_record(record, format_name)
            yield Prompt(record, row if system is None else _with_system(row, system), where)
        except RowError as error:
            raise UserError(f"{where}: {error}") from error


def _with_system(row: Row, system: str) -> Row:
    """Return ``row`` with the system message ``system``, unless it has one."""
    if isinstance(row, PlainText):
        raise RowError("a system message", "this row is plain text, not a conversation")
    if row.messages[0]["role"] == "system":
        return row
    return Conversation([{"role": "system", "content": system}, *row.messages], row.tools)
