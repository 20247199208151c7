"""Special tokens in the text of a row: ordinary text, unless the user wants the tokens."""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from peft_lightning.data.records import Finding, RowError
from peft_lightning.data.tokens.marks import LITERAL, LITERAL_END, MARKS, without_marks

THINK_TAGS = ("<think>", "</think>")  # an assistant's thought is written as text between them


class SpecialTokens:
    """The special tokens of a tokenizer, found in texts.

    Args:
        tokenizer: Provides the tokens.
        in_text: What those in a row's own text are: "encode" for text, "keep" for the tokens
            themselves, "error" to refuse the row.

    Attributes:
        special: The special tokens.
        bos: The token that begins a text, "" if there is none.
        eos: The token that ends a text, "" if there is none.
        pattern: Matches every token that is never merged with the text around it, with the white
            space that it absorbs.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, in_text: str = "encode") -> None:
        added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        special = {*(text for text in added if added[text].special), *tokenizer.all_special_tokens}
        special.discard("")
        self.special = tuple(sorted(special, key=len, reverse=True))
        self.bos, self.eos = str(tokenizer.bos_token or ""), str(tokenizer.eos_token or "")
        self.in_text = in_text
        absorbing = dict.fromkeys(special, (False, False))
        absorbing |= {text: (token.lstrip, token.rstrip) for text, token in added.items()}
        pieces = [
            (r"\s*" if before else "") + f"(?:{one_of(tokens)})" + (r"\s*" if behind else "")
            for before, behind in itertools.product((False, True), repeat=2)
            if (tokens := [t for t, sides in absorbing.items() if sides == (before, behind)])
        ]
        self.pattern = re.compile("|".join(pieces) or "(?!)")
        self._special = re.compile(one_of(special))
        self._of_answers = re.compile(one_of(special.difference(THINK_TAGS)))
        self._special_or_mark = re.compile(one_of([*special, *MARKS]))
        self._lengths = sorted({len(token) for token in special}, reverse=True)
        self._known = frozenset(special)
        self._last_letters = frozenset(token[-1] for token in special)

    def is_clean(self, value: Any) -> bool:
        """Whether neither special tokens nor private marks are in the strings of ``value``."""
        if isinstance(value, str):
            return self._special_or_mark.search(value) is None
        if isinstance(value, dict):
            return all(map(self.is_clean, value.values()))
        return not isinstance(value, (list, tuple)) or all(map(self.is_clean, value))

    def mark(self, value: Any, answer: bool = False) -> Any:
        """Return ``value`` with the special tokens in all of its strings between private marks.

        What a chat template prints between marks is the row's own text; see ``unmark``.

        Args:
            value: A string, or an object of JSON.
            answer: Whether it is of the assistant, whose tags of thoughts are left as they are.
        """
        if isinstance(value, str):
            text = without_marks(value)  # nobody else marks a token
            if self.in_text == "keep":
                return text
            pattern = self._of_answers if answer else self._special
            return pattern.sub(f"{LITERAL}\\g<0>{LITERAL_END}", text)
        if isinstance(value, dict):
            return {key: self.mark(item, answer) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.mark(item, answer) for item in value]
        return value

    def findings(self, value: Any, answer: bool = False) -> list[Finding]:
        """Return a finding for each special token in the strings of ``value``; see ``mark``.

        Raises:
            RowError: If there is one and ``in_text`` is "error".
        """
        pattern = self._of_answers if answer else self._special
        found = sorted({m.group() for text in _strings(value) for m in pattern.finditer(text)})
        if found and self.in_text == "error":
            detail = f"{', '.join(found)}; special_tokens_in_text: encode makes them ordinary text"
            raise RowError("special tokens in the text", detail)
        meaning = "kept as a token" if self.in_text == "keep" else "encoded as text"
        return [Finding(f"special token in the text, {meaning}:", token) for token in found]

    def in_order(self, text: str) -> list[str]:
        """Return the special tokens in ``text``."""
        return self._special.findall(text)

    def at_the_end(self, text: str) -> list[tuple[int, str]]:
        """Return the special tokens at the end of ``text``, white space between them aside.

        Returns:
            Pairs of the position behind the token and the token.
        """
        found, rest = [], text.rstrip()
        while token := self._last(rest):
            found.append((len(rest), token))
            rest = rest[: -len(token)].rstrip()
        return found[::-1]

    def _last(self, text: str) -> str:
        """Return the longest special token with which ``text`` ends, or ""."""
        if text[-1:] not in self._last_letters:
            return ""
        ends = (text[-length:] for length in self._lengths)
        return next((end for end in ends if end in self._known), "")

    def is_only_special(self, text: str) -> bool:
        """Whether there is nothing but special tokens and white space in ``text``."""
        return not self._special.sub("", text).strip()


def one_of(tokens: Iterable[str]) -> str:
    """Return a regular expression for the longest of ``tokens``.

    It branches where the tokens differ: a tokenizer may have a thousand special tokens, and to try
    each at every "<" of a text takes longer than to tokenize it.
    """
    known = sorted(set(tokens))
    if not known:
        return "(?!)"
    pairs = zip(known[0], known[-1], strict=False)
    prefix = "".join(first for first, _ in itertools.takewhile(lambda p: p[0] == p[1], pairs))
    rest = [token[len(prefix) :] for token in known if token != prefix]
    groups = itertools.groupby(rest, key=lambda token: token[0])
    branches = "|".join(one_of(group) for _, group in groups)
    optional = "?" if prefix in known and rest else ""
    return re.escape(prefix) + (f"(?:{branches}){optional}" if rest else "")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
