"""From conversations and plain text to token ids and loss masks."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from peft_lightning.data.conversations import Conversation, Message, PlainText, Row
from peft_lightning.data.options import TokenOptions
from peft_lightning.data.records import DroppedRowError, Finding, LongRowError, RowError
from peft_lightning.data.rendering import RenderedRow, render_row
from peft_lightning.data.templates import ChatTemplate, load_template
from peft_lightning.data.tokenizer import continuation_ids, eos_id, special_prefix
from peft_lightning.messages import UserError


@dataclass(frozen=True)
class TokenizedRow:
    """The token ids of a row, and their weights in the loss.

    Args:
        input_ids: (n,) int32.
        loss_weights: (n,) float32, 0 for a token that is not in the loss; 0 for the first token,
            which no position predicts.
        truncated: Whether tokens were cut off.
        findings: What the reader of the data should hear of.
    """

    input_ids: NDArray[np.int32]
    loss_weights: NDArray[np.float32]
    truncated: bool = False
    findings: tuple[Finding, ...] = ()


class RowTokenizer:
    """Tokenizes rows and computes their loss masks.

    A text is tokenized once, as a whole. A token is in the loss if it starts inside a span that is
    in the loss. Where a token would contain characters on both sides of the start of a span, the
    text is split there, so that the prompt has the same tokens as at generation.

    Args:
        tokenizer: Any tokenizer; a fast one avoids tokenizing the spans separately.
        chat_template: As for ``load_template``.
        options: How rows become tokens.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        options: TokenOptions = TokenOptions(),  # noqa: B008  (frozen)
    ) -> None:
        self.tokenizer = tokenizer
        self.template = load_template(tokenizer, chat_template)
        self.options = options
        self._chat = ChatTemplate(tokenizer, self.template) if self.template else None
        self._prefix = special_prefix(tokenizer)

    def tokenize(self, rows: Sequence[Row]) -> list[list[TokenizedRow] | RowError]:
        """Tokenize ``rows``, each into one or several; one that cannot be used gives its error.

        Raises:
            UserError: If a row is a conversation and there is no chat template.
        """
        rendered = [self._render(row) for row in rows]
        tokens = iter(self._tokenize_texts([r for r in rendered if isinstance(r, RenderedRow)]))
        return [r if isinstance(r, RowError) else self._finish(r, *next(tokens)) for r in rendered]

    def _render(self, row: Row) -> RenderedRow | RowError:
        try:
            return render_row(row, self._chat, self.options.train_on)
        except RowError as error:
            return error

    def _tokenize_texts(
        self, rows: list[RenderedRow]
    ) -> list[tuple[list[int], NDArray[np.float32]]]:
        if not self.tokenizer.is_fast:  # no offsets
            return [self._tokenize_in_pieces(row) for row in rows]
        if not rows:
            return []
        encoding = self.tokenizer(
            [row.text for row in rows],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        result = []
        tokens = zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
        for row, (ids, offsets) in zip(rows, tokens, strict=True):
            starts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
            if any(_splits_token(start, starts, ends) for start, _, _ in row.spans):
                result.append(self._tokenize_in_pieces(row))
                continue
            weights = np.zeros(len(ids), dtype=np.float32)
            for start, end, weight in row.spans:
                weights[(starts >= start) & (starts < end)] = weight
            result.append((ids, weights))
        return result

    def _tokenize_in_pieces(self, row: RenderedRow) -> tuple[list[int], NDArray[np.float32]]:
        """Tokenize the spans and the text between them separately."""
        edges = sorted({0, len(row.text), *(edge for span in row.spans for edge in span[:2])})
        ids: list[int] = []
        weights: list[float] = []
        for start, end in itertools.pairwise(edges):
            piece = continuation_ids(self.tokenizer, row.text[start:end], first=start == 0)
            ids += piece
            weights += [sum(w for s, e, w in row.spans if s <= start < e)] * len(piece)
        return ids, np.array(weights, dtype=np.float32)

    def _finish(
        self, row: RenderedRow, ids: list[int], weights: NDArray[np.float32]
    ) -> list[TokenizedRow] | RowError:
        """Add the special tokens and truncate."""
        prefix = self._prefix if row.add_special_prefix else []
        if ids[: len(prefix)] == prefix:
            prefix = []  # never a second BOS
        suffix = [eos_id(self.tokenizer)] if row.add_eos else []
        input_ids = np.array([*prefix, *ids, *suffix], dtype=np.int32)
        loss_weights = np.zeros(len(input_ids), dtype=np.float32)
        loss_weights[len(prefix) : len(prefix) + len(ids)] = weights
        loss_weights[len(prefix) + len(ids) :] = row.eos_weight
        loss_weights[:1] = 0
        if not loss_weights.any():
            return RowError("no token in the loss")
        detail = f"{len(input_ids)} tokens, max_length is {self.options.max_length}"
        if len(input_ids) <= self.options.max_length:
            return [TokenizedRow(input_ids, loss_weights)]
        if self.options.truncation == "error":
            return LongRowError("longer than max_length", detail)
        if self.options.truncation == "drop":
            return DroppedRowError("longer than max_length", detail)
        input_ids, loss_weights = (
            input_ids[: self.options.max_length],
            loss_weights[: self.options.max_length],
        )
        if not loss_weights.any():
            return DroppedRowError("no token in the loss after truncation", detail)
        return [TokenizedRow(input_ids, loss_weights, truncated=True)]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Message] | Row,
    chat_template: str | None = None,
) -> list[int]:
    """Return the token ids of a prompt: those that precede the completion in a training row.

    Args:
        tokenizer: The model's tokenizer.
        prompt: Messages, a row without its completion, or a text. A text is a user's message if
            there is a template, else plain text.
        chat_template: As for ``load_template``.

    Raises:
        UserError: If there are messages but no template, or the template refuses them.
    """
    template = load_template(tokenizer, chat_template)
    if isinstance(prompt, str):
        message = {"role": "user", "content": prompt}
        row: Row = Conversation([message], plain=PlainText([(prompt, False)]))
    else:
        row = prompt if isinstance(prompt, (Conversation, PlainText)) else Conversation(prompt)
    if isinstance(row, Conversation) and template is not None:
        chat = ChatTemplate(tokenizer, template)
        text = chat.render(row.messages, row.tools, generation_prompt=True)
        return continuation_ids(tokenizer, text, first=True)
    plain = row if isinstance(row, PlainText) else row.plain
    if plain is None:
        raise UserError("the prompt is messages, but there is no chat template to render them")
    text = "".join(piece for piece, _ in plain.segments)
    prefix, ids = special_prefix(tokenizer), continuation_ids(tokenizer, text, first=True)
    return ids if ids[: len(prefix)] == prefix else [*prefix, *ids]


def _splits_token(at: int, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> bool:
    """Whether a token contains both the character before ``at`` and the one at ``at``.

    The offsets of a token may exclude its leading white space; no token then ends at ``at``.
    """
    if at == 0:
        return False
    return not (ends == at).any() or bool(((starts < at) & (ends > at)).any())
