"""Prompts from the command line or a file: read once, then encoded for each tokenizer."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from peft_lightning.data import (
    PromptEncoder,
    Row,
    RowError,
    RowOptions,
    RowParser,
    find_source,
    resolve_format,
)
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
    options: RowOptions = RowOptions(),  # noqa: B008  (frozen)
) -> list[Prompt]:
    """Read prompts from texts or from a file.

    Args:
        texts: Prompts of the command line; None for those of ``file``.
        file: A .txt file with one prompt per line, or rows as for training, in which the answers
            may be missing.
        options: The format of the rows, and the system message of conversations that have none.

    Raises:
        UserError: If there are no prompts, or a row is malformed; the message names its line.
    """
    if file is not None and file.endswith(".txt"):
        texts = [line for line in read_text(file).splitlines() if line.strip()]
    found: Iterator[tuple[Any, str]]
    if texts is not None:
        found = iter([({"prompt": text}, f"prompt {i}") for i, text in enumerate(texts, start=1)])
        options = RowOptions("prompt_completion", system_prompt=options.system_prompt)
    else:
        assert file is not None
        source = find_source(file, "predict", options.encoding)
        if summary := source.summary():
            print(summary, file=sys.stderr)
        found = iter(source.records())
    prompts = list(_parsed(found, options, str(file)))
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
    encoder = PromptEncoder(tokenizer)
    for prompt in prompts:
        try:
            rows.append(encoder.encode(prompt.row))
        except RowError as error:
            raise UserError(f"{prompt.where}: {error}") from error
    return rows


def _parsed(found: Iterator[tuple[Any, str]], options: RowOptions, file: str) -> Iterator[Prompt]:
    resolved, found = resolve_format(found, options, file, prompts_only=True)
    parser = RowParser(resolved, options)
    for record, location in found:
        try:
            if isinstance(record, RowError):
                raise record
            row = parser.prompt(record)
        except ValueError as error:
            raise UserError(f"{location}: {error}") from error
        yield Prompt(record, row, location)
