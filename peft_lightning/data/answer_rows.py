"""Rows of a split to be answered: the tokens before their last answer, and those of the answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from peft_lightning.data.references import last_stretch
from peft_lightning.data.split import Split
from peft_lightning.messages import UserError


@dataclass(frozen=True)
class AnswerRow:
    """A row as a question with its answer.

    Args:
        source: The source's name in metrics; empty where there is one without a name.
        file: The source as the user wrote it.
        number: The number of the record in the source, from 1.
        prompt: Token ids up to the last answer that is in the loss, as generation is given them.
        answer: Token ids of that answer, with those that end it.
    """

    source: str
    file: str
    number: int
    prompt: list[int]
    answer: list[int]

    @property
    def length(self) -> int:
        """The number of its tokens up to the end of the answer."""
        return len(self.prompt) + len(self.answer)

    @property
    def location(self) -> str:
        """The row's place, for messages."""
        return f"{self.file}, row {self.number}"


def answer_rows(split: Split, limit: int) -> list[AnswerRow]:
    """Return the first rows of each source of a split, in the order of its files.

    The last answer is the last stretch of tokens in the loss: of a conversation the last turn of
    the assistant that is trained on.

    Args:
        split: The rows.
        limit: Rows of each source; 0 for all.

    Raises:
        UserError: If everything of a row is in the loss, so that nothing asks for an answer.
    """
    ends = np.cumsum([len(part) for part in split.parts])
    labels = split.labels or [""] * len(split.sources)
    found = []
    for label, source in zip(labels, split.sources, strict=True):
        for index in source.rows[: limit or None]:
            place = int(np.searchsorted(ends, index, side="right"))
            part = split.parts[place]
            inside = int(index - ends[place] + len(part))
            row = part[inside]
            start, end = last_stretch(np.flatnonzero(row["loss_weights"]))
            ids = [int(i) for i in row["input_ids"][:end]]
            number = int(part.records[inside]) + 1
            found.append(
                AnswerRow(label, str(part.meta["source"]), number, ids[:start], ids[start:])
            )
            if start <= 1:
                raise UserError(
                    f"{found[-1].location}: all of it is in the loss, so no prompt asks for an "
                    "answer that model.metrics could score; they need rows with a prompt and "
                    "data.train_on assistant or last"
                )
    return found
