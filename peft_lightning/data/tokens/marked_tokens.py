"""The text of single tokens, and a row as text in which the tokens in the loss are marked."""

import itertools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "⟦", "⟧"
GREEN, FAINT, RESET = "\x1b[32;1m", "\x1b[2m", "\x1b[0m"
ELLIPSIS = " … "
MOST_STRETCHES = 12


@dataclass(frozen=True)
class MarkedToken:
    """A token of a row.

    Args:
        text: Its part of the row's text; empty for the first tokens of a character that is several.
        id: Its id.
        weight: Its weight in the loss, 0 if it is not in it.
        is_special: Whether it is a special token.
    """

    text: str
    id: int
    weight: float
    is_special: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return text, id, in_loss and weight."""
        in_loss = self.weight != 0
        return {"text": self.text, "id": self.id, "in_loss": in_loss, "weight": self.weight}


@dataclass(frozen=True)
class MarkedRow:
    """A row to show.

    Args:
        source: Where it is from: "file:line", or the name of its source.
        tokens: Its tokens.
    """

    source: str
    tokens: list[MarkedToken]


def marked_tokens(
    tokenizer: PreTrainedTokenizerBase, input_ids: NDArray[Any], loss_weights: NDArray[Any]
) -> list[MarkedToken]:
    """Return the tokens of a row, whose texts are, joined, that of the row.

    Args:
        tokenizer: The tokenizer.
        input_ids: (n,) The token ids.
        loss_weights: (n,) The weights of the tokens in the loss.
    """
    ids = [int(i) for i in input_ids]
    special = set(tokenizer.all_special_ids)
    texts = token_texts(tokenizer, ids)
    return [
        MarkedToken(text, i, round(float(weight), 6), i in special)
        for text, i, weight in zip(texts, ids, loss_weights, strict=True)
    ]


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """Return the text of each token; joined, they are the text of all.

    The text of a token depends on those before it: SentencePiece drops the first space of a text,
    and a character can be several tokens.
    """

    def decode(some: list[int]) -> str:
        return str(tokenizer.decode(some, clean_up_tokenization_spaces=False))

    texts = []
    start = done = 0  # of the tokens before, those from start to done give the context
    for end in range(1, len(ids) + 1):
        before, text = decode(ids[start:done]), decode(ids[start:end])
        is_whole = not text.endswith("\ufffd") or end == len(ids)
        if not is_whole and end - done < 8:
            texts.append("")
            continue
        texts.append(text[len(before) :])
        start, done = done, end
    return texts


def marked_text(tokens: Sequence[MarkedToken], color: bool = False) -> str:
    """Return the text of a row with its tokens in the loss between ⟦ and ⟧, or in green.

    A weight other than 1 stands before them. Control characters are escaped: rows come from
    anywhere.

    Args:
        tokens: The tokens.
        color: Whether to use the colours of a terminal.
    """
    return "".join(_marked(stretch, color) for stretch in _stretches(tokens))


def short_marked_text(tokens: Sequence[MarkedToken], limit: int = 160) -> str:
    """Return ``marked_text`` in one line, with about ``limit`` tokens of a long row.

    Args:
        tokens: The tokens.
        limit: Number of tokens to show, more if they are in many stretches.
    """
    stretches = _stretches(tokens)
    if len(tokens) > limit:
        if len(stretches) > MOST_STRETCHES:
            gap = [MarkedToken(ELLIPSIS, -1, 0.0)]
            stretches = [*stretches[: MOST_STRETCHES - 2], gap, *stretches[-2:]]
        each = max(8, limit // len(stretches))
        stretches = [_shortened(stretch, each) for stretch in stretches]
    return "".join(_marked(stretch, color=False) for stretch in stretches).replace("\n", "↵")


def _marked(stretch: Sequence[MarkedToken], color: bool) -> str:
    """Return the text of tokens of equal weight."""
    weight = stretch[0].weight
    number = "" if weight in (0, 1) else f"{weight:g}:"
    if not color:
        inner = "".join(printable(token.text) for token in stretch)
        return f"{OPEN}{number}{inner}{CLOSE}" if weight else inner
    runs = itertools.groupby(stretch, key=lambda token: token.is_special)
    painted = (
        _painted("".join(printable(token.text) for token in run), bool(weight), special)
        for special, run in runs
    )
    return _painted(number, True, False) + "".join(painted)


def _stretches(tokens: Sequence[MarkedToken]) -> list[Sequence[MarkedToken]]:
    """Return the tokens in stretches of equal weight."""
    return [list(run) for _, run in itertools.groupby(tokens, key=lambda token: token.weight)]


def _shortened(stretch: Sequence[MarkedToken], limit: int) -> Sequence[MarkedToken]:
    if len(stretch) <= limit:
        return stretch
    half = limit // 2
    return [*stretch[:half], MarkedToken(ELLIPSIS, -1, stretch[0].weight), *stretch[-half:]]


def _painted(text: str, in_loss: bool, is_special: bool) -> str:
    """Return the text in the colours of a terminal; each line has its own."""
    codes = (GREEN if in_loss else "") + (FAINT if is_special else "")
    if not codes:
        return text
    return "\n".join(f"{codes}{line}{RESET}" if line else "" for line in text.split("\n"))


def printable(text: str) -> str:
    """Return ``text``, but escape what would act on a terminal or could be taken for a mark."""
    return "".join(c if _is_harmless(c) else _escaped(c) for c in text)


def _is_harmless(character: str) -> bool:
    if character in "\n\t":
        return True
    if character in (OPEN, CLOSE):
        return False
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") or (
        character in "\u200c\u200d"  # joiners of emoji, Persian and Hindi
    )


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
