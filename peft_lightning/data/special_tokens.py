"""Special tokens in the text of a row: ordinary text, unless the user wants the tokens."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from peft_lightning.data.records import Finding, RowError

START, END = "\ue000", "\ue001"  # private characters around a special token that is text
MARKED = re.compile(f"{START}([^{END}]*){END}")
THINK_TAGS = ("<think>", "</think>")  # never marked, because rows contain thoughts as text

Span = tuple[int, int]  # characters, end exclusive


class SpecialTokens:
    """The special tokens of a tokenizer, found in texts.

    Args:
        tokenizer: Provides the tokens.
        in_text: What those in a row's own text are: "encode" for text, "keep" for the tokens
            themselves, "error" to refuse the row.

    Attributes:
        special: The special tokens.
        bos: The token that begins a text, "" if there is none.
        pattern: Matches every token that is never merged with the text around it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, in_text: str = "encode") -> None:
        added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
        special = {*(token for token in added if added[token]), *tokenizer.all_special_tokens}
        self.special = tuple(sorted(special))
        self.bos = str(tokenizer.bos_token or "")
        self.in_text = in_text
        self.pattern = _any_of([*added, *special])
        self._special = _any_of(self.special)
        self._in_text = _any_of([token for token in special if token not in THINK_TAGS])
        run = "|".join([r"\s", *map(re.escape, sorted(special, key=len, reverse=True))])
        self._run_at_the_end = re.compile(f"(?:{run})*\\Z")

    def mark(self, value: Any) -> Any:
        """Return ``value`` with the special tokens in all of its strings between private marks.

        What a chat template prints between marks is the row's own text; see ``unmark``.
        """
        if isinstance(value, str):
            if START in value or END in value:  # nobody else marks a token
                value = value.replace(START, "").replace(END, "")
            if self.in_text == "keep":
                return value
            return self._in_text.sub(f"{START}\\g<0>{END}", value)
        if isinstance(value, dict):
            return {key: self.mark(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.mark(item) for item in value]
        return value

    def findings(self, value: Any) -> list[Finding]:
        """Return a finding for each special token in the strings of ``value``.

        Raises:
            RowError: If there is one and ``in_text`` is "error".
        """
        found = sorted({m.group() for s in _strings(value) for m in self._in_text.finditer(s)})
        if found and self.in_text == "error":
            detail = f"{', '.join(found)}; special_tokens_in_text: encode makes them ordinary text"
            raise RowError("special tokens in the text", detail)
        meaning = "kept as a token" if self.in_text == "keep" else "encoded as text"
        return [Finding(f"special token in the text, {meaning}:", token) for token in found]

    def end_of_answer(self, text: str) -> tuple[int, bool]:
        """Find where an answer ends in what a template prints from the answer on.

        Returns:
            The end of the first special token of those at the end of ``text``, white space between
            them aside, and True; without any, the end of ``text`` without white space, and False.
        """
        match = self._run_at_the_end.search(text)
        assert match is not None
        first = self._special.search(text, match.start())
        return (first.end(), True) if first else (len(text.rstrip()), False)


def unmark(text: str) -> tuple[str, list[Span], list[int]]:
    """Remove the marks of ``SpecialTokens.mark`` from a text.

    Returns:
        The text; the spans in it that are to be encoded as text; and the positions of the marks in
        the marked text, for ``shift``.
    """
    if START not in text:
        return text, [], []
    marks = [i for i, character in enumerate(text) if character in (START, END)]
    spans = [(shift(m.start(), marks), shift(m.end(), marks)) for m in MARKED.finditer(text)]
    return text.replace(START, "").replace(END, ""), spans, marks


def shift(position: int, marks: Sequence[int]) -> int:
    """Return ``position`` in a marked text as a position in the text without marks."""
    return position - sum(mark < position for mark in marks)


def _any_of(tokens: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted({token for token in tokens if token}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
