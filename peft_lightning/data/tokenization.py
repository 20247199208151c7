"""From conversations and plain text to token ids, with which of them are trained on."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from peft_lightning.data.conversations import Conversation, Message, PlainText, Row
from peft_lightning.data.sources import RowError
from peft_lightning.data.templates import ChatTemplate, Span, load_template
from peft_lightning.data.tokenizer import continuation_ids, eos_id, special_prefix
from peft_lightning.messages import check_choice

TRAIN_ON = ("assistant", "last", "all")
TRUNCATION = ("truncate", "drop", "error")


@dataclass(frozen=True)
class Encoded:
    """One tokenised row.

    Args:
        input_ids: (n,) int32.
        labelled: (n,) bool, the tokens in the loss; never the first, which nothing predicts.
        truncated: Whether tokens were cut off.
    """

    input_ids: NDArray[np.int32]
    labelled: NDArray[np.bool_]
    truncated: bool = False


@dataclass
class Counts:
    """What became of the rows of a source; ``read == kept + sum(reasons)`` always holds."""

    read: int = 0
    kept: int = 0
    truncated: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        assert self.read == self.kept + self.reasons.total(), self
        cut = f" ({self.truncated} of them truncated)" if self.truncated else ""
        dropped = "".join(f" + {reason}: {n}" for reason, n in self.reasons.most_common())
        return f"{self.read} read = {self.kept} kept{cut}{dropped}"


class Encoder:
    """Tokenises rows with one tokenizer, chat template and loss mask.

    A text is tokenised once, as a whole; a token is labelled if it starts inside a trained span.
    Where a token would straddle the start of a span, the text is cut there, so that the prompt
    has the very tokens that it has at generation.

    Args:
        tokenizer: Any tokenizer; fast ones are much faster here.
        chat_template: As ``load_template`` takes it.
        train_on: "assistant" for all of the assistant's turns, "last" for the last, "all" tokens.
        max_length: Most tokens of a row, at least 2.
        truncation: What becomes of a longer row: "truncate" cuts its right end and puts no end
            marker there, "drop" leaves it out, "error" raises.

    Raises:
        ValueError: For a value that is not among these.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        train_on: str = "assistant",
        max_length: int = 1024,
        truncation: str = "truncate",
    ) -> None:
        check_choice("train_on", train_on, TRAIN_ON)
        check_choice("truncation", truncation, TRUNCATION)
        if max_length < 2:
            raise ValueError(f"max_length must be at least 2, got {max_length}")
        self.tokenizer = tokenizer
        self.template = load_template(tokenizer, chat_template)
        self.train_on, self.max_length, self.truncation = train_on, max_length, truncation
        self._chat = ChatTemplate(tokenizer, self.template) if self.template else None
        self._prefix = special_prefix(tokenizer)

    def encode(self, rows: Sequence[Row]) -> list[Encoded | RowError]:
        """Tokenise ``rows``; a row that cannot be used comes back as what is wrong with it.

        Raises:
            ValueError: If rows of messages meet a tokenizer without a chat template, or a longer
                row than ``max_length`` meets ``truncation: error``.
        """
        texts = [self._text_or_reason(row) for row in rows]
        good = [text for text in texts if not isinstance(text, RowError)]
        tokens = iter(self._tokenise(good))
        return [t if isinstance(t, RowError) else self._finish(t, *next(tokens)) for t in texts]

    def _text_or_reason(self, row: Row) -> "_Text | RowError":
        try:
            return self._text(row)
        except RowError as reason:
            return reason

    def _text(self, row: Row) -> "_Text":
        if isinstance(row, PlainText):
            return self._plain(row)
        if self._chat is None:
            if row.plain is None:
                raise ValueError(
                    "these rows are conversations, but the tokenizer has no chat template (or"
                    " chat_template is 'none'); give chat_template the path of a Jinja file, take"
                    " the tokenizer of an instruction-tuned model, or use prompt_completion rows"
                )
            return self._plain(row.plain)
        text, spans, needs_eos = self._chat.render_spans(row, self.train_on != "assistant")
        if self.train_on == "all":
            return _Text(text, [(0, len(text))], eos=needs_eos, eos_trains=True)
        return _Text(text, spans, needs_eos, eos_trains=len(row.messages) - 1 not in row.untrained)

    def _plain(self, row: PlainText) -> "_Text":
        text, spans = "", []
        for piece, trained in row.segments:
            if trained or self.train_on == "all":
                spans.append((len(text), len(text) + len(piece)))
            text += piece
        return _Text(text, spans, eos=True, eos_trains=bool(spans), special_prefix=True)

    def _tokenise(self, texts: "list[_Text]") -> list[tuple[list[int], NDArray[np.bool_]]]:
        if not self.tokenizer.is_fast:  # no offsets
            return [self._in_pieces(t) for t in texts]
        if not texts:
            return []
        encoding = self.tokenizer(
            [t.text for t in texts],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        result = []
        tokens = zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
        for t, (ids, pairs) in zip(texts, tokens, strict=True):
            starts, ends = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
            if any(_straddled(start, starts, ends) for start, _ in t.spans):
                result.append(self._in_pieces(t))
                continue
            labelled = np.zeros(len(ids), dtype=np.bool_)
            for start, end in t.spans:
                labelled |= (starts >= start) & (starts < end)
            result.append((ids, labelled))
        return result

    def _in_pieces(self, t: "_Text") -> tuple[list[int], NDArray[np.bool_]]:
        """Tokenise what lies in the spans and between them apart."""
        edges = sorted({0, len(t.text), *(edge for span in t.spans for edge in span)})
        ids: list[int] = []
        labelled: list[bool] = []
        for start, end in itertools.pairwise(edges):
            piece = continuation_ids(self.tokenizer, t.text[start:end], first=start == 0)
            ids += piece
            labelled += [any(s <= start < e for s, e in t.spans)] * len(piece)
        return ids, np.array(labelled, dtype=np.bool_)

    def _finish(
        self, t: "_Text", ids: list[int], labelled: NDArray[np.bool_]
    ) -> Encoded | RowError:
        prefix = self._prefix if t.special_prefix else []
        if ids[: len(prefix)] == prefix:
            prefix = []  # never a second BOS
        suffix = [eos_id(self.tokenizer)] if t.eos else []
        input_ids = np.array([*prefix, *ids, *suffix], dtype=np.int32)
        mask = np.zeros(len(input_ids), dtype=np.bool_)
        mask[len(prefix) : len(prefix) + len(ids)] = labelled
        mask[len(prefix) + len(ids) :] = t.eos_trains
        mask[:1] = False
        if not mask.any():
            return RowError("no labelled token")
        detail = f"{len(input_ids)} tokens, max_length is {self.max_length}"
        if len(input_ids) <= self.max_length:
            return Encoded(input_ids, mask)
        if self.truncation == "error":
            return LongRowError("longer than max_length", detail)
        if self.truncation == "drop":
            return DroppedRowError("longer than max_length", detail)
        input_ids, mask = input_ids[: self.max_length], mask[: self.max_length]
        if not mask.any():
            return DroppedRowError("no labelled token left", detail)
        return Encoded(input_ids, mask, truncated=True)


class DroppedRowError(RowError):
    """A row that the truncation policy leaves out: counted, never an error."""


class LongRowError(RowError):
    """A row that is too long where ``truncation`` is "error": always an error."""


@dataclass(frozen=True)
class _Text:
    """A text to tokenise, its trained spans, and what goes around it.

    Args:
        text: The text.
        spans: The trained characters.
        eos: Whether the EOS token follows it.
        eos_trains: Whether that EOS is in the loss.
        special_prefix: Whether it starts with what the tokenizer puts there (BOS); a chat
            template prints that itself.
    """

    text: str
    spans: list[Span]
    eos: bool
    eos_trains: bool
    special_prefix: bool = False


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Message] | Row,
    chat_template: str | None = None,
) -> list[int]:
    """Return the token ids to generate an answer from: those a training row has before it.

    Args:
        tokenizer: The model's.
        prompt: Messages, a row without its answer, or one text: a user's message if there is a
            template, else plain text.
        chat_template: As ``load_template`` takes it.

    Raises:
        ValueError: If messages meet no template, or the template refuses them.
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
        raise ValueError("the prompt is messages, but there is no chat template to render them")
    text = "".join(piece for piece, _ in plain.segments)
    prefix, ids = special_prefix(tokenizer), continuation_ids(tokenizer, text, first=True)
    return ids if ids[: len(prefix)] == prefix else [*prefix, *ids]


def end_token_ids(tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> set[int]:
    """Return the ids that end an answer: the EOS token's and the end-of-turn token's."""
    ids = {tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()
    if template := load_template(tokenizer, chat_template):
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        chat = ChatTemplate(tokenizer, template)
        text = chat.render(turns, None, generation_prompt=False).rstrip()
        if text.endswith(chat.end_tokens):
            ids.add(continuation_ids(tokenizer, text, first=True)[-1])
    return ids


def _straddled(at: int, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> bool:
    """Tell whether the character before ``at`` shares a token with the one at ``at``.

    Offsets may leave out a token's leading white space: then no token covers that character.
    """
    if at == 0:
        return False
    return not (ends == at).any() or bool(((starts < at) & (ends > at)).any())
