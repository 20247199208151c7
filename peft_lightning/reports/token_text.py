"""Rows on a page: their text with the tokens in the loss and the special tokens in colour."""

from __future__ import annotations

from collections.abc import Sequence

from peft_lightning.data.tokens.marked_tokens import MarkedRow, MarkedToken
from peft_lightning.reports.page import Html, escaped

LEGEND = Html(
    "<p class=note>Tokens in the loss are <span class=loss>like this</span>, special tokens"
    " <span class=special>like this</span>; the mouse over a token shows its id.</p>"
)


def rows_block(rows: Sequence[MarkedRow], most_tokens: int | None = None) -> Html:
    """Return rows, each below its source.

    Args:
        rows: The rows.
        most_tokens: Of a longer row so many are shown: half from its start, half from its end.
    """
    shown = (
        f"<h3 class=mono>{escaped(row.source)}</h3>"
        f"<pre>{token_text(_ends(row.tokens, most_tokens))}</pre>"
        for row in rows
    )
    return Html(LEGEND + "".join(shown))


def token_text(tokens: Sequence[MarkedToken]) -> Html:
    """Return the text of tokens, each with its id and weight under the mouse."""
    return Html("".join(map(_span, tokens)))


def _span(token: MarkedToken) -> str:
    if token.id < 0:
        return f"<i class=note>{escaped(token.text)}</i>"
    kinds = " ".join(["loss"] * bool(token.weight) + ["special"] * token.is_special)
    number = f"<sup>{token.weight:g}</sup>" if token.weight not in (0, 1) else ""
    return (
        f'<span class="{kinds}" title="{token.id}, weight {token.weight:g}">'
        f"{number}{escaped(token.text)}</span>"
    )


def _ends(tokens: Sequence[MarkedToken], most: int | None) -> Sequence[MarkedToken]:
    if most is None or len(tokens) <= most:
        return tokens
    half = most // 2
    gap = MarkedToken(f"\n\N{HORIZONTAL ELLIPSIS} {len(tokens) - 2 * half:,} tokens\n", -1, 0.0)
    return [*tokens[:half], gap, *tokens[-half:]]
