"""From conversations and plain text to token ids and their weights in the loss."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from peft_lightning.data.options import TokenOptions
from peft_lightning.data.records import DroppedRowError, Finding, LongRowError, RowError
from peft_lightning.data.rows.conversations import Row
from peft_lightning.data.tokens.rendered_row import RenderedRow
from peft_lightning.data.tokens.rendering import RowRenderer
from peft_lightning.data.tokens.special_tokens import SpecialTokens
from peft_lightning.data.tokens.template_sources import load_templates
from peft_lightning.data.tokens.templates import ChatTemplate
from peft_lightning.data.tokens.text_tokenizer import TextTokenizer, Tokens
from peft_lightning.data.tokens.tokenizer import eos_id, special_prefix


@dataclass(frozen=True)
class TokenizedRow:
    """The token ids of a row, and their weights in the loss.

    Args:
        input_ids: (n,) int32.
        loss_weights: (n,) float32, 0 for a token that is not in the loss; 0 for the first token,
            which no position predicts.
        num_cut: Number of tokens that were cut off the end.
        findings: What the reader of the data should hear of.
    """

    input_ids: NDArray[np.int32]
    loss_weights: NDArray[np.float32]
    num_cut: int = 0
    findings: tuple[Finding, ...] = ()

    @property
    def full_length(self) -> int:
        """Number of tokens before truncation."""
        return len(self.input_ids) + self.num_cut

    @property
    def truncated(self) -> bool:
        """Whether tokens were cut off."""
        return self.num_cut > 0


class RowTokenizer:
    """Tokenizes rows and computes the weights of their tokens in the loss.

    Args:
        tokenizer: Any tokenizer; a fast one is needed for speed only.
        chat_template: As for ``load_templates``.
        options: How rows become tokens.

    Attributes:
        date: The date that the chat template prints as today's; None if it prints none.

    Raises:
        UserError: If the chat template cannot be used.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        options: TokenOptions = TokenOptions(),  # noqa: B008  (frozen)
    ) -> None:
        self.tokenizer, self.options = tokenizer, options
        self._chat_template = chat_template
        self.templates = load_templates(tokenizer, chat_template)
        special_tokens = SpecialTokens(tokenizer, options.special_tokens_in_text)
        template, self.date = None, None
        if self.templates:
            template = ChatTemplate(tokenizer, self.templates, options.template_date)
            self.date = options.template_date if template.prints_date else None
        self.renderer = RowRenderer(template, special_tokens, options)
        self._text = TextTokenizer(tokenizer, special_tokens)
        self._prefix = special_prefix(tokenizer)

    def with_options(self, **changes: Any) -> RowTokenizer:
        """Return one that differs in some of its ``TokenOptions``."""
        return RowTokenizer(self.tokenizer, self._chat_template, replace(self.options, **changes))

    @functools.cached_property
    def _certainly_long(self) -> int:
        """The characters that ``max_length`` tokens have at most."""
        return self.options.max_length * max(map(len, self.tokenizer.get_vocab()), default=1)

    def tokenize(self, rows: Sequence[Row]) -> list[list[TokenizedRow] | RowError]:
        """Tokenize ``rows``, each into one or several; one that cannot be used gives its error.

        Raises:
            UserError: If a row is a conversation and there is no chat template.
        """
        rendered = [self._render(row) for row in rows]
        texts = [text for texts in rendered if isinstance(texts, list) for text in texts]
        tokens = iter(self._text.tokenize(texts))
        result: list[list[TokenizedRow] | RowError] = []
        for of_row in rendered:
            if isinstance(of_row, RowError):
                result.append(of_row)
                continue
            finished = [self._finish(text, next(tokens)) for text in of_row]
            errors = [part for part in finished if isinstance(part, RowError)]
            kept = [part for part in finished if isinstance(part, TokenizedRow)]
            result.append(errors[0] if errors else kept)
        return result

    def encode_prompt(self, row: Row) -> list[int]:
        """Return the token ids of a row without its completion, as generation is given them.

        Raises:
            RowError: If the chat template refuses the messages.
            UserError: If the row is a conversation and there is no chat template.
        """
        rendered = self.renderer.render_prompt(row)
        (tokens,) = self._text.tokenize([rendered])
        return [*self._prefix_of(rendered, tokens.ids), *tokens.ids]

    def _render(self, row: Row) -> list[RenderedRow] | RowError:
        try:
            rendered = self.renderer.render(row)
        except RowError as error:
            return error
        return [self._shortened(text) for text in rendered]

    def _shortened(self, row: RenderedRow) -> RenderedRow:
        """Cut a text whose first part alone has more than ``max_length`` tokens.

        Tokenizers need more than linear time for a long text without white space.
        """
        size = self._certainly_long
        if len(row.text) <= 2 * size:
            return row
        text, rest = row.text[: size + 1], row.text[size + 1 :]
        spans = [(s, min(e, size + 1), w) for s, e, w in row.spans if s < size]
        answers = [(s, min(e, size + 1)) for s, e in row.answers if s <= size]
        literals = [(s, e) for s, e in row.literals if e <= size]
        return replace(row, text=text, spans=spans, answers=answers, literals=literals, rest=rest)

    def _num_tokens(self, text: str) -> int:
        """Return the number of tokens of a long text, in pieces: at most one too many for each."""
        size = self._certainly_long
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        encoded = self.tokenizer(pieces, add_special_tokens=False, verbose=False)["input_ids"]
        return sum(map(len, encoded))

    def _prefix_of(self, row: RenderedRow, ids: list[int]) -> list[int]:
        """Return the special tokens before a text; never a second BOS."""
        if not row.add_special_prefix or ids[: len(self._prefix)] == self._prefix:
            return []
        return self._prefix

    def _finish(self, row: RenderedRow, tokens: Tokens) -> TokenizedRow | RowError:
        """Add the special tokens around the text, and truncate."""
        prefix = self._prefix_of(row, tokens.ids)
        suffix = [] if row.eos_weight is None else [eos_id(self.tokenizer)]
        input_ids = np.array([*prefix, *tokens.ids, *suffix], dtype=np.int32)
        weights = np.zeros(len(input_ids), dtype=np.float32)
        of_text = weights[len(prefix) : len(prefix) + len(tokens.ids)]
        for start, end, weight in row.spans:
            of_text[tokens.first_from(start) : tokens.first_from(end)] = weight
        weights[len(prefix) + len(tokens.ids) :] = row.eos_weight or 0
        weights[:1] = 0
        if not weights.any():
            return RowError("no token in the loss")
        max_length, length = self.options.max_length, len(input_ids)
        if length <= max_length:
            return TokenizedRow(input_ids, weights, findings=row.findings)
        if row.rest:
            length += self._num_tokens(row.rest)
        detail = f"{length} tokens"
        if self.options.truncation == "error":
            return LongRowError(f"longer than max_length {max_length}", detail, length)
        if self.options.truncation == "drop":
            return DroppedRowError(f"longer than max_length {max_length}", detail, length)
        input_ids, weights = input_ids[:max_length], weights[:max_length]
        if not weights.any():
            reason = f"no token in the loss within max_length {max_length}"
            return DroppedRowError(reason, detail, length)
        return TokenizedRow(input_ids, weights, length - max_length, row.findings)
