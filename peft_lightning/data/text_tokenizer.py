"""From a text to token ids, of which those before each answer are what generation is given."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from peft_lightning.data.rendering import RenderedRow
from peft_lightning.data.special_tokens import SpecialTokens

MAX_PROMPTS_KEPT = 4096
Spans = NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """The tokens of a text, without those around it.

    Args:
        ids: Their ids.
        starts: (n,) Where the text of each begins, in characters.
        ends: (n,) Where it ends, exclusive.
    """

    ids: list[int]
    starts: Spans
    ends: Spans


class TextTokenizer:
    """Tokenizes texts so that a prompt has the same tokens with and without the answer behind it.

    A text is tokenized as a whole. Where that gives a prompt other tokens than it has alone, the
    text is cut at the end of the prompt; likewise where a token contains the last character in the
    loss and the one behind it. Some tokenizers merge white space at the end of a prompt into one
    token, unless an answer follows.

    Args:
        tokenizer: Any tokenizer; of one that is not fast the pieces are tokenized separately.
        special_tokens: Its special tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special_tokens: SpecialTokens) -> None:
        self.tokenizer, self.special_tokens = tokenizer, special_tokens
        self._added_ids = frozenset(tokenizer.added_tokens_decoder)
        self._prompts: dict[str, list[int]] = {}  # ids of the ends of prompts

    def tokenize(self, rows: Sequence[RenderedRow]) -> list[Tokens]:
        """Tokenize the texts of ``rows``; special tokens in their literal spans are text."""
        if not self.tokenizer.is_fast:  # it knows no offsets
            return [self._pieces(row, _edges(row)) for row in rows]
        whole = iter(self._encode([row.text for row in rows if not row.literals]))
        tokens = [
            self._piece(row, 0, len(row.text)) if row.literals else next(whole) for row in rows
        ]
        tails = [
            [(b, *_tail(found, b, self._added_ids)) for b in row.boundaries if b]
            for row, found in zip(rows, tokens, strict=True)
        ]
        self._learn(
            row.text[start:b] for row, of in zip(rows, tails, strict=True) for b, start, _ in of
        )
        return [self._cut(*of_row) for of_row in zip(rows, tokens, tails, strict=True)]

    def _cut(
        self, row: RenderedRow, tokens: Tokens, tails: Sequence[tuple[int, int, list[int]]]
    ) -> Tokens:
        """Tokenize ``row`` in pieces where a prompt would have other tokens than alone."""
        cuts = {b for b, start, ids in tails if ids != self._prompts[row.text[start:b]]}
        for _, end, _ in row.spans:
            if end < len(row.text) and ((tokens.starts < end) & (tokens.ends > end)).any():
                cuts.add(end)
        return self._pieces(row, sorted({0, len(row.text), *cuts})) if cuts else tokens

    def _learn(self, texts: Iterable[str]) -> None:
        """Tokenize the ends of prompts that are not known yet."""
        texts = list(dict.fromkeys(texts))
        new = [text for text in texts if text not in self._prompts]
        if len(self._prompts) + len(new) > MAX_PROMPTS_KEPT:
            self._prompts.clear()
            new = texts
        if new:
            encoded = self.tokenizer(new, add_special_tokens=False, verbose=False)["input_ids"]
            self._prompts.update(zip(new, encoded, strict=True))

    def _encode(self, texts: list[str], split: bool = False) -> list[Tokens]:
        """Tokenize texts; with ``split``, special tokens in them are text."""
        if not texts:
            return []
        fast = self.tokenizer.is_fast
        encoding = self.tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=split,
            return_offsets_mapping=fast,
            return_attention_mask=False,
            verbose=False,
        )
        result = []
        for i, text in enumerate(texts):
            ids = encoding["input_ids"][i]
            offsets = encoding["offset_mapping"][i] if fast else [(0, len(text))] * len(ids)
            starts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
            result.append(Tokens(ids, starts, ends))
        return result

    def _pieces(self, row: RenderedRow, edges: Sequence[int]) -> Tokens:
        """Tokenize the texts between ``edges`` separately."""
        return _join([self._piece(row, start, end) for start, end in itertools.pairwise(edges)])

    def _piece(self, row: RenderedRow, start: int, end: int) -> Tokens:
        """Tokenize a part of a text, in which special tokens in literal spans are text."""
        literals = [span for span in row.literals if start < span[1] and span[0] < end]
        if not literals:
            return self._continuation(row.text, start, end, split=False)
        parts, at = [], start
        for match in self.special_tokens.pattern.finditer(row.text, start, end):
            if not any(s <= match.start() < e for s, e in literals):
                parts += [(at, match.start(), True), (*match.span(), False)]
                at = match.end()
        parts.append((at, end, True))
        return _join([self._continuation(row.text, *part) for part in parts if part[0] < part[1]])

    def _continuation(self, text: str, start: int, end: int, split: bool) -> Tokens:
        """Tokenize ``text[start:end]`` as the continuation of what precedes it."""
        piece = text[start:end]
        (tokens,) = self._encode([piece if start == 0 else "\n" + piece], split)
        skipped = 0
        if start:  # SentencePiece adds a space before the first character: let it be the "\n"
            (line,) = self._encode(["\n"])
            skipped = len(line.ids) if tokens.ids[: len(line.ids)] == line.ids else 0
            if not skipped:
                (tokens,) = self._encode([piece], split)
        shift = start - bool(skipped)
        if not self.tokenizer.is_fast:
            shift = start
        return Tokens(
            tokens.ids[skipped:], tokens.starts[skipped:] + shift, tokens.ends[skipped:] + shift
        )


def _tail(tokens: Tokens, boundary: int, added_ids: frozenset[int]) -> tuple[int, list[int]]:
    """Find the end of the prompt before ``boundary``, from its last special token on.

    A tokenizer merges nothing over a special token, so what precedes it does not matter.

    Returns:
        Where it starts in the text, and the ids of its tokens.
    """
    end = int(np.searchsorted(tokens.starts, boundary))
    first = end
    while first > 0 and tokens.ids[first - 1] not in added_ids:
        first -= 1
    if first == 0:
        return 0, tokens.ids[:end]
    return int(tokens.starts[first - 1]), tokens.ids[first - 1 : end]


def _edges(row: RenderedRow) -> list[int]:
    edges = (edge for span in row.spans for edge in span[:2])
    return sorted({0, len(row.text), *row.boundaries, *edges})


def _join(parts: Sequence[Tokens]) -> Tokens:
    ids = [i for part in parts for i in part.ids]
    if not parts:
        return Tokens(ids, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    return Tokens(
        ids,
        np.concatenate([part.starts for part in parts]),
        np.concatenate([part.ends for part in parts]),
    )
