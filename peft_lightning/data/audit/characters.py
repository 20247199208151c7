"""Scripts of the text, and characters that hint at a damaged or a manipulated file."""

import functools
import unicodedata
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from peft_lightning.data.audit.shingles import Texts

CODE_POINTS = 0x110000
# kind of finding: the code points, first and last of each range
ODD = {
    "replacement character U+FFFD": [(0xFFFD, 0xFFFD)],
    "control character": [(0x00, 0x08), (0x0B, 0x0C), (0x0E, 0x1F), (0x7F, 0x9F)],
    "invisible character": [
        (0x00AD, 0x00AD),  # soft hyphen
        (0x200B, 0x200B),  # zero width space; its joiners are needed by emoji, Persian and Hindi
        (0x2060, 0x2064),
        (0xFEFF, 0xFEFF),
        (0xE0000, 0xE007F),  # tags
    ],
    "bidirectional control character": [(0x202A, 0x202E), (0x2066, 0x2069)],
    "private use character": [(0xE000, 0xF8FF), (0xF0000, 0xFFFFD), (0x100000, 0x10FFFD)],
    "lone surrogate": [(0xD800, 0xDFFF)],
}
MOJIBAKE = "mojibake"  # UTF-8 that was read as Windows-1252 or Latin-1, such as Ã© for é
KINDS = (*ODD, MOJIBAKE)

# the first word of a letter's name is its script, but for these
_SCRIPTS = {
    "CJK": "Han",
    "HALFWIDTH": "Katakana",
    "FULLWIDTH": "Latin",
    **dict.fromkeys(["FEMININE", "MASCULINE", "KELVIN", "ANGSTROM"], "Latin"),
    **dict.fromkeys(["MATHEMATICAL", "MODIFIER", "MICRO", "DOUBLE-STRUCK", "SCRIPT"], "Symbols"),
}


@functools.cache
def _flags() -> NDArray[np.uint8]:
    table = np.zeros(CODE_POINTS, dtype=np.uint8)
    for bit, ranges in enumerate(ODD.values()):
        for first, last in ranges:
            table[first : last + 1] |= 1 << bit
    return table


@functools.cache
def _continuations() -> NDArray[np.bool_]:
    """Return which characters a continuation byte of UTF-8 becomes in Windows-1252 or Latin-1."""
    table = np.zeros(CODE_POINTS, dtype=bool)
    table[0x80:0xC0] = True
    for byte in range(0x80, 0xA0):
        table[ord(bytes([byte]).decode("cp1252", "ignore") or "\x80")] = True
    return table


def odd_characters(texts: Texts) -> tuple[NDArray[np.uint8], Counter[int]]:
    """Find odd characters, and count all characters.

    Returns:
        The odd kinds in each text, (texts,), as bits in the order of ``KINDS``; and the occurrences
        of each code point.
    """
    found = np.bincount(texts.codes)
    present = np.flatnonzero(found)
    counts = Counter(dict(zip(present.tolist(), found[present].tolist(), strict=True)))
    odd = np.zeros(len(texts.ends), dtype=np.uint8)
    flags = _flags()[texts.codes]
    places = np.flatnonzero(flags)
    np.bitwise_or.at(odd, np.searchsorted(texts.ends, places, side="right"), flags[places])
    wrong = np.searchsorted(texts.ends, _mojibake(texts.codes), side="right")
    odd[wrong] |= 1 << len(ODD)
    return odd, counts


def _mojibake(codes: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return where a character of UTF-8 begins that was read in a wrong encoding.

    A sequence alone may be text, such as ``ß“``. It counts if it begins with Ã or Â, as the Latin
    letters of Europe do, or is ``â€`` and a third, as quotes are, or another follows it.
    """
    lead = (codes >= 0xC2) & (codes <= 0xF4)
    if not lead.any():
        return np.empty(0, dtype=np.int64)
    padded = np.concatenate([codes, np.zeros(3, dtype=np.uint32)])
    at = np.flatnonzero(lead)
    length = 2 + (codes[at] >= 0xE0).astype(np.int64) + (codes[at] >= 0xF0)
    follows = np.stack([_continuations()[padded[at + k]] for k in (1, 2, 3)], axis=1)
    whole = (follows | (np.arange(2, 5) > length[:, None])).all(axis=1)
    at, length = at[whole], length[whole]
    latin = (codes[at] <= 0xC3) & (padded[at + 1] != 0xBB)  # Â» ends a quotation
    quote = (codes[at] == 0xE2) & (padded[at + 1] == 0x20AC)
    followed = np.isin(at + length, at)
    preceded = np.isin(at, at + length)
    return at[latin | quote | followed | preceded]


def scripts(counts: Counter[int]) -> dict[str, float]:
    """Return the share of each script in the letters, the largest first.

    Args:
        counts: Occurrences of each code point.
    """
    letters: Counter[str] = Counter()
    for code, number in counts.items():
        character = chr(code)
        if character.isalpha():
            word = unicodedata.name(character, "UNKNOWN").split()[0]
            letters[_SCRIPTS.get(word, word.capitalize())] += number
    total = letters.total()
    return {name: number / total for name, number in letters.most_common()}
