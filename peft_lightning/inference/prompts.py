"""Prompts from the command line or a file: read once, then encoded as each adapter was trained."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from peft_lightning.data import (
    PromptEncoder,
    PromptFormat,
    PromptTemplate,
    Row,
    RowError,
    RowOptions,
    RowParser,
    find_source,
    resolve_format,
)
from peft_lightning.files import read_text
from peft_lightning.messages import UserError

LocatedRecord = tuple[Any, str]  # or the error of a malformed one, and where it is


class Prompts:
    """Records to answer, in which the answers may be missing.

    Args:
        found: The records, each with its file and line, or the number of the prompt.
        name: The file, for error messages; None for texts of the command line.
        options: The user's options of the file.

    Attributes:
        records: The rows as they are in the file.

    Raises:
        UserError: If there are no prompts, or one cannot be read; the message names its line.
    """

    def __init__(
        self, found: Iterable[LocatedRecord], name: str | None, options: RowOptions
    ) -> None:
        self.records: list[dict[str, Any]] = []
        self.name, self._options, self._locations = name, options, list[str]()
        for record, location in found:
            if isinstance(record, RowError):
                raise UserError(f"{location}: {record}") from record
            self.records.append(record)
            self._locations.append(location)
        if not self.records:
            raise UserError(f"there is no prompt in {name or '--prompt'}")

    def __len__(self) -> int:
        return len(self.records)

    def rows(self, prompt_format: PromptFormat) -> list[Row]:
        """Return the messages or texts of the prompts, without the answers.

        Raises:
            UserError: If a record is malformed; the message names its line.
        """
        records, options = self.records, self._options_for(prompt_format)
        if self.name is None:
            records = [{"prompt": prompt_format.filled(row["prompt"])} for row in records]
        return list(self._parsed(zip(records, self._locations, strict=True), options))

    def fill(self, prompt_format: PromptFormat) -> bool:
        """Whether the prompts fill the template of the prompt; without, they are whole."""
        if self.name is None:
            return prompt_format.text_column is not None
        return self._options_for(prompt_format).prompt is not None

    def _options_for(self, prompt_format: PromptFormat) -> RowOptions:
        columns = () if self.name is None else self.records[0].keys()
        return prompt_format.row_options(self._options, columns)

    def encode(
        self, tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat
    ) -> list[list[int]]:
        """Return the token ids of each prompt.

        Raises:
            UserError: If the chat template refuses a prompt; the message names its line.
        """
        ids = []
        encoder = PromptEncoder(tokenizer, prompt_format)
        for row, location in zip(self.rows(prompt_format), self._locations, strict=True):
            try:
                ids.append(encoder.encode(row))
            except RowError as error:
                raise UserError(f"{location}: {error}") from error
        return ids

    def _parsed(self, found: Iterator[LocatedRecord], options: RowOptions) -> Iterator[Row]:
        resolved, found = resolve_format(found, options, str(self.name), prompts_only=True)
        parser = RowParser(resolved, options)
        for record, location in found:
            assert not isinstance(record, RowError)
            try:
                yield parser.prompt(record)
            except ValueError as error:
                raise UserError(f"{location}: {error}") from error


def read_prompts(
    texts: Sequence[str] | None,
    file: str | None,
    options: RowOptions = RowOptions(),  # noqa: B008  (frozen)
) -> Prompts:
    """Read prompts from texts or from a file.

    Args:
        texts: Prompts of the command line; None for those of ``file``.
        file: A .txt file with one prompt per line, or rows as for training, in which the answers
            may be missing.
        options: The format of the rows. A template of the prompt has one column if there are
            texts.

    Raises:
        UserError: If there are no prompts, or a row cannot be read; the message names its line.
    """
    if file is not None and file.endswith(".txt"):
        texts = [line for line in read_text(file).splitlines() if line.strip()]
    if texts is not None:
        located = [({"prompt": text}, f"prompt {i}") for i, text in enumerate(texts, start=1)]
        if file is not None and not located:
            raise UserError(f"there is no prompt in {file}")
        columns = PromptTemplate(options.prompt).columns if options.prompt else ()
        if len(columns) > 1:
            raise UserError(
                f"the template {options.prompt!r} has {len(columns)} columns, and a text fills one:"
                " give the prompts as --file, rows with these columns"
            )
        return Prompts(located, None, RowOptions("prompt_completion"))
    assert file is not None
    source = find_source(file, "predict", options.encoding)
    if summary := source.summary():
        print(summary, file=sys.stderr)
    return Prompts(source.records(), file, options)
