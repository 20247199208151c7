"""The answers that rows to generate from have at hand, as token ids, to compare with."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from peft_lightning.data.records import Record, RowError
from peft_lightning.data.rows.row_parser import RowParser
from peft_lightning.data.tokens.tokenization import RowTokenizer
from peft_lightning.messages import UserError


class References:
    """Finds what a row has in place of the answer that is generated.

    Args:
        row_tokenizer: That of the prompts.
    """

    def __init__(self, row_tokenizer: RowTokenizer) -> None:
        self._row_tokenizer = row_tokenizer.with_options(
            train_on="last", max_length=sys.maxsize >> 32, truncation="error"
        )

    def of(self, record: Record, parser: RowParser, prompt: Sequence[int]) -> list[int] | None:
        """Return the token ids of a row's answer, with those that end it.

        Args:
            record: The row.
            parser: That of its source.
            prompt: The token ids that generation is given.

        Returns:
            None if the row has no answer behind this prompt, or one that is not trained on.
        """
        try:
            (parts,) = self._row_tokenizer.tokenize([parser.row(record)])
        except (RowError, UserError):  # it is a prompt alone, as which it has been read
            return None
        if isinstance(parts, RowError):
            return None
        start, end = last_stretch(np.flatnonzero(parts[-1].loss_weights))
        ids = parts[-1].input_ids.tolist()
        return ids[start:end] if ids[:start] == list(prompt) else None


def last_stretch(places: NDArray[np.int64]) -> tuple[int, int]:
    """Return the first of the last places that follow on each other, and the one behind them.

    Args:
        places: (n,) In increasing order, at least one.
    """
    first = np.flatnonzero(np.diff(places, prepend=-2) > 1)[-1]
    return int(places[first]), int(places[-1]) + 1
