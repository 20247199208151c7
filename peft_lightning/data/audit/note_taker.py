"""Reads records as ``fit`` does and takes notes on them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peft_lightning.data.audit.answers import AnswerReader, hash_of
from peft_lightning.data.audit.characters import odd_characters
from peft_lightning.data.audit.near_duplicates import BINS, signatures
from peft_lightning.data.audit.row_notes import RowNotes, Sample, Tally
from peft_lightning.data.audit.shingles import Texts
from peft_lightning.data.audit.turn_order import ODD_ORDER, odd_order
from peft_lightning.data.records import Finding, LocatedRecord, RowError
from peft_lightning.data.row_results import RowResult, row_results
from peft_lightning.data.rows.conversations import Conversation, Row
from peft_lightning.data.rows.row_parser import RowParser
from peft_lightning.data.tokens.tokenization import RowTokenizer, TokenizedRow

SYSTEM_ROLES = ("system", "developer")


class NoteTaker:
    """Reads records as ``fit`` does and takes notes on them.

    Args:
        parser: Turns a record into a row.
        row_tokenizer: Tokenizes the rows.
        common: Shingles that do not count for similarity.
        num_samples: Number of rows to show.
        seed: Seed of the choice of these.
    """

    def __init__(
        self,
        parser: RowParser,
        row_tokenizer: RowTokenizer,
        common: NDArray[np.bool_],
        num_samples: int,
        seed: int,
    ) -> None:
        self.parser, self.row_tokenizer, self.common = parser, row_tokenizer, common
        self.num_samples, self.seed = num_samples, seed
        self._answers = AnswerReader(row_tokenizer.tokenizer)

    def __call__(self, first: int, records: Sequence[LocatedRecord]) -> RowNotes:
        """Return the notes on ``records``, the first of which has the number ``first``."""
        results = row_results(records, self.parser, self.row_tokenizer)
        kept = [(i, r) for i, r in enumerate(results) if isinstance(r.tokens, list)]
        index = np.array([i for i, _ in kept], dtype=np.int64)
        tokens: list[list[TokenizedRow]] = [r.tokens for _, r in kept if isinstance(r.tokens, list)]
        parts = [part for row in tokens for part in row]
        answers = self._answers.read(tokens)
        texts = [row_texts(r.row) for _, r in kept if r.row is not None]
        odd, characters = odd_characters(Texts.of([system + own for system, own in texts]))
        own = Texts.of([own for _, own in texts])

        def spread(values: NDArray[Any], dtype: type) -> NDArray[Any]:
            whole: NDArray[Any] = np.zeros((len(results), *values.shape[1:]), dtype=dtype)
            whole[index] = values
            return whole

        hashes = [
            hash_of(*(a for p in row for a in (p.input_ids, p.loss_weights))) for row in tokens
        ]
        notes = RowNotes(
            sequences=spread(np.array([len(row) for row in tokens]), np.int32),
            lengths=np.array([_length(result) for result in results], dtype=np.int64),
            row_hashes=spread(np.array(hashes, dtype=np.uint64), np.uint64),
            answer_hashes=spread(answers.hashes, np.uint64),
            prompt_hashes=spread(answers.prompts, np.uint64),
            answer_lengths=spread(answers.lengths, np.int32),
            loops=spread(answers.loops, np.bool_),
            signatures=spread(signatures(own, self.common).reshape(-1, BINS), np.uint8),
            odd=spread(odd, np.uint8),
            sequence_lengths=np.array([len(p.input_ids) for p in parts], dtype=np.int64),
            sequence_loss_tokens=np.array(
                [np.count_nonzero(p.loss_weights) for p in parts], dtype=np.int64
            ),
            num_truncated=sum(any(p.truncated for p in row) for row in tokens),
            characters=characters,
            answers=answers.texts,
            samples=self._samples(first, kept),
        )
        self._take_words(results, notes)
        return notes

    def _take_words(self, results: Sequence[RowResult], notes: RowNotes) -> None:
        """Note errors, findings and roles."""
        for i, result in enumerate(results):
            if isinstance(result.tokens, RowError):
                error = result.tokens
                tally = notes.errors.setdefault(error.reason, Tally(kind=type(error)))
                tally.add(i, str(error))
                continue
            found = [finding for part in result.tokens for finding in part.findings]
            found += result.row.findings if result.row is not None else ()
            if isinstance(result.row, Conversation):
                roles = tuple(message["role"] for message in result.row.messages)
                notes.roles.update(roles)
                found += [Finding(ODD_ORDER, odd) for odd in odd_order(roles)]
            for finding in dict.fromkeys(found):
                notes.findings.setdefault(finding, Tally()).add(i)

    def _samples(self, first: int, kept: Sequence[tuple[int, RowResult]]) -> list[Sample]:
        """Return the rows of the smallest pseudo-random numbers, and the first row."""
        if not kept or not self.num_samples:
            return []
        numbers = np.array([first + i for i, _ in kept], dtype=np.uint64)
        orders = _scrambled(numbers + np.uint64(self.seed % 2**32) * np.uint64(2**32))
        best = np.argsort(orders, kind="stable")[: self.num_samples]
        return [
            Sample(int(orders[k]), kept[k][1].location, kept[k][1].tokens)
            for k in dict.fromkeys([0, *best.tolist()])
            if isinstance(kept[k][1].tokens, list)
        ]


def row_texts(row: Row) -> tuple[str, str]:
    """Return the text of the system messages of a row, and its own text, each ending in a line."""
    if not isinstance(row, Conversation):
        return "", "".join(text for text, _ in row.segments) + "\n"
    system, own = "", ""
    for message in row.messages:
        text = message.get("content") or ""
        if calls := message.get("tool_calls"):
            text = f"{text}{calls}"
        if message["role"] in SYSTEM_ROLES:
            system += f"{text}\n"
        else:
            own += f"{text}\n"
    return system, own


def _length(result: RowResult) -> int:
    if isinstance(result.tokens, RowError):
        return result.tokens.length or 0
    return max(part.full_length for part in result.tokens)


def _scrambled(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a pseudo-random number for each of ``values``, the last steps of SplitMix64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
