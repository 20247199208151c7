"""The text of an answer: decoded, ended by stop strings, and printed while it is generated."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from peft_lightning.messages import UserError

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # of a character whose bytes are not all there
_SLACK = 16  # tokens that are decoded in front of those that a stop string can have


def decode_answer(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop: Sequence[str] = ()
) -> str:
    """Return the text of an answer, without special tokens and surrounding white space.

    Args:
        tokenizer: The tokenizer.
        ids: Token ids of the answer.
        stop: Strings that end it.
    """
    return until_stop(_decoded(tokenizer, ids), stop).strip()


def reference_text(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], ends: Collection[int]
) -> str:
    """Return the text of a row's own answer as one that is generated would have it.

    Args:
        tokenizer: The tokenizer.
        ids: Token ids of the answer, with those that end it.
        ends: The ids that end an answer, of ``stop_token_ids``.
    """
    return decode_answer(tokenizer, until_end(ids, ends))


def until_end(ids: list[int], ends: Collection[int]) -> list[int]:
    """Return the ids before the first of ``ends``."""
    end = next((k for k, i in enumerate(ids) if i in ends), len(ids))
    return ids[:end]


def until_stop(text: str, stop: Sequence[str]) -> str:
    """Return the text before the first of the stop strings in it."""
    return text[: min((text.find(s) for s in stop if s in text), default=len(text))]


def is_cut(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], most: int, stop: Sequence[str] = ()
) -> bool:
    """Whether an answer ended because it had ``most`` tokens, and not by itself."""
    text = _decoded(tokenizer, ids) if stop else ""
    return len(ids) >= most and until_stop(text, stop) == text


def require_stop_strings(given: Sequence[str]) -> None:
    """Raise UserError if a stop string is empty."""
    if "" in given:
        raise UserError('a stop string is empty: give a text such as --stop "\\nQuestion:"')


def stop_strings(tokenizer: PreTrainedTokenizerBase, given: Sequence[str]) -> tuple[str, ...]:
    """Return the stop strings that are looked for in texts: those that are no special token.

    Raises:
        UserError: If one is empty.
    """
    require_stop_strings(given)
    special = set(special_stops(tokenizer, given))
    return tuple(s for s in given if s not in special)


def special_stops(tokenizer: PreTrainedTokenizerBase, given: Sequence[str]) -> dict[str, int]:
    """Return the stop strings that are special tokens, which no answer's text has, with the ids."""
    added = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    return {s: added[s] for s in given if s in added}


class StopsAtStrings(StoppingCriteria):
    """Ends each answer of a batch when its text has a stop string.

    Args:
        tokenizer: The tokenizer.
        stop: The strings, at least one.
        start: Tokens of the prompts in front of the answers.

    Attributes:
        lengths: By the row of the batch, with how many tokens its answer ended.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], start: int) -> None:
        self._tokenizer, self._stop, self._start = tokenizer, stop, start
        self._most = max(len(s.encode()) for s in stop) + _SLACK  # a token has a byte at least
        self.lengths: dict[int, int] = {}

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        answers = input_ids[:, self._start :].tolist()
        for row, ids in enumerate(answers):
            if row not in self.lengths and self._ends(ids):
                self.lengths[row] = len(ids)
        done = [row in self.lengths for row in range(len(answers))]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)

    def _ends(self, ids: list[int]) -> bool:
        return any(
            all(s in _decoded(self._tokenizer, part) for part in (ids[-self._most :], ids))
            for s in self._stop
        )


class AnswerStreamer(BaseStreamer):
    """Hands on the text of an answer while it is generated, as ``decode_answer`` returns it.

    What may be the beginning of a stop string, or of a character, waits for the next token.

    Args:
        tokenizer: The tokenizer.
        ends: Ids that end the answer.
        stop: Strings that end it.
        on_text: Gets each new piece of the text.
    """

    def __init__(
        self,
        tokenizer: Any,
        ends: Collection[int],
        stop: Sequence[str],
        on_text: Callable[[str], None],
    ) -> None:
        self._tokenizer, self._ends, self._stop = tokenizer, ends, stop
        self._on_text = on_text
        self._ids: list[int] | None = None  # None before the prompt, which comes first
        self._shown = ""

    def put(self, value: Tensor) -> None:
        if self._ids is None:
            self._ids = []
            return
        self._ids += value.flatten().tolist()
        text = _decoded(self._tokenizer, until_end(self._ids, self._ends))
        if (found := until_stop(text, self._stop)) == text:
            found = text.rstrip(_INCOMPLETE)
            found = found[: len(found) - _begun(found, self._stop)]
        self._show(found.strip())

    def end(self) -> None:
        ids = until_end(self._ids or [], self._ends)
        self._show(decode_answer(self._tokenizer, ids, self._stop))

    def _show(self, text: str) -> None:
        if len(text) > len(self._shown) and text.startswith(self._shown):
            self._on_text(text[len(self._shown) :])
            self._shown = text


def _begun(text: str, stop: Sequence[str]) -> int:
    """Return how many characters at the end of a text may begin a stop string."""
    lengths = (k for s in stop for k in range(1, len(s)) if text.endswith(s[:k]))
    return max(lengths, default=0)


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))
