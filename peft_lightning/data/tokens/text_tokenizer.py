"""From a text to token ids, of which those before each answer are what generation is given."""

import bisect
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from peft_lightning.data.tokens.marks import Span
from peft_lightning.data.tokens.rendered_row import RenderedRow
from peft_lightning.data.tokens.special_tokens import SpecialTokens

MAX_PROMPTS_KEPT = 4096


@dataclass(frozen=True)
class Tokens:
    """The tokens of a text, without those around it.

    Args:
        ids: Their ids.
        spans: The span of the text of each, in characters, end exclusive.
    """

    ids: list[int]
    spans: list[Span]

    def first_from(self, position: int) -> int:
        """Return the index of the first token whose text begins at ``position`` or later."""
        return bisect.bisect_left(self.spans, (position,))

    def straddles(self, position: int) -> int | None:
        """Return the id of the token with text on both sides of ``position``, or None."""
        last = self.first_from(position) - 1
        return self.ids[last] if last >= 0 and self.spans[last][1] > position else None


class TextTokenizer:
    """Tokenizes texts so that a prompt has the same tokens with and without the answer behind it.

    A text is tokenized as a whole. Where that gives a prompt other tokens than it has alone, the
    text is cut at the end of the prompt; likewise where a token contains the last character of an
    answer and the one behind it. Some tokenizers merge white space at the end of a prompt into one
    token, unless an answer follows.

    Args:
        tokenizer: Any tokenizer; of one that is not fast the pieces are tokenized separately.
        special_tokens: Its special tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special_tokens: SpecialTokens) -> None:
        self.tokenizer, self.special_tokens = tokenizer, special_tokens
        self._added_ids = frozenset(tokenizer.added_tokens_decoder)
        self._alone: dict[str, list[int]] = {}  # ids of the ends of prompts

    def tokenize(self, rows: Sequence[RenderedRow]) -> list[Tokens]:
        """Tokenize the texts of ``rows``; special tokens in their literal spans are text."""
        if not self.tokenizer.is_fast:  # it knows no offsets
            return [self._pieces(row, _edges(row)) for row in rows]
        whole = iter(self._encode([row.text for row in rows if not row.literals]))
        tokens = [
            self._piece(row, 0, len(row.text)) if row.literals else next(whole) for row in rows
        ]
        tails = [
            [(start, *self._tail(found, start)) for start, _ in row.answers if start]
            for row, found in zip(rows, tokens, strict=True)
        ]
        self._learn(
            row.text[first:start]
            for row, of_row in zip(rows, tails, strict=True)
            if not row.literals
            for start, first, _ in of_row
        )
        return [self._cut(*of_row) for of_row in zip(rows, tokens, tails, strict=True)]

    def _tail(self, tokens: Tokens, end: int) -> tuple[int, list[int]]:
        """Find the end of the prompt before ``end``, from its last special token on.

        A tokenizer merges nothing over a special token, so what precedes it does not matter.

        Returns:
            Where it starts in the text, and the ids of its tokens.
        """
        ids, last = tokens.ids, tokens.first_from(end)
        first = last - 1
        while first > 0 and ids[first] not in self._added_ids:
            first -= 1
        return (tokens.spans[first][0], ids[first:last]) if first > 0 else (0, ids[:last])

    def _cut(
        self, row: RenderedRow, tokens: Tokens, tails: Sequence[tuple[int, int, list[int]]]
    ) -> Tokens:
        """Tokenize ``row`` in pieces where a prompt would have other tokens than alone."""
        cuts = set()
        for start, first, ids in tails:
            known = not row.literals
            alone = self._alone[row.text[first:start]] if known else self._ids(row, first, start)
            if ids != alone or tokens.straddles(start) is not None:
                cuts.add(start)
        for _, end in row.answers:
            over = tokens.straddles(end) if end < len(row.text) else None
            if over is not None and over not in self._added_ids:  # which may absorb white space
                cuts.add(end)
        return self._pieces(row, sorted({0, len(row.text), *cuts})) if cuts else tokens

    def _ids(self, row: RenderedRow, start: int, end: int) -> list[int]:
        return self._piece(row, start, end).ids

    def _learn(self, texts: Iterable[str]) -> None:
        """Tokenize the ends of prompts that are not known yet."""
        needed = dict.fromkeys(texts)
        new = [text for text in needed if text not in self._alone]
        if len(self._alone) + len(new) > MAX_PROMPTS_KEPT:
            self._alone.clear()
            new = list(needed)
        if new:
            encoded = self.tokenizer(new, add_special_tokens=False, verbose=False)["input_ids"]
            self._alone.update(zip(new, encoded, strict=True))

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
            return_token_type_ids=False,
            verbose=False,
        )
        if fast:
            return list(map(Tokens, encoding["input_ids"], encoding["offset_mapping"]))
        return [
            Tokens(ids, [(0, len(text))] * len(ids))
            for ids, text in zip(encoding["input_ids"], texts, strict=True)
        ]

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
        spans = [(begin + shift, stop + shift) for begin, stop in tokens.spans[skipped:]]
        return Tokens(tokens.ids[skipped:], spans)


def _edges(row: RenderedRow) -> list[int]:
    spans = [*((start, end) for start, end, _ in row.spans), *row.answers]
    return sorted({0, len(row.text), *itertools.chain(*spans)})


def _join(parts: Sequence[Tokens]) -> Tokens:
    ids = [i for part in parts for i in part.ids]
    return Tokens(ids, [span for part in parts for span in part.spans])
