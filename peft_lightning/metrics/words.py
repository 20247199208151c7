"""Words of a text in any script, as ROUGE and F1 compare them."""

from __future__ import annotations

import re
import unicodedata

# scripts that put no space between words; their characters are compared one by one
_UNSPACED = re.compile(
    "[\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff"  # Han, Hiragana, Katakana
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"  # Thai, Lao, Myanmar, Khmer
)


def words(text: str) -> list[str]:
    """Return the lower-case words of a text: runs of letters, marks and digits of any script.

    Of ASCII text they are the tokens of Google's ``rouge_score`` without stemming, which are runs
    of a to z and 0 to 9; that takes all other letters for spaces, so that a Korean text has no
    tokens at all. A character of a script without spaces between words is a word. Texts that look
    the same are the same: they are compared in Unicode's form NFC.
    """
    lower = text.lower()
    if lower.isascii():
        return re.findall("[a-z0-9]+", lower)
    spaced = []
    for character in unicodedata.normalize("NFC", lower):
        kind = unicodedata.category(character)
        if kind[0] in "LMN":
            spaced.append(character)
        elif kind != "Cf":  # joiners and soft hyphens stand within words
            spaced.append(" ")
    return [word for run in "".join(spaced).split() for word in characters_of_unspaced(run)]


def characters_of_unspaced(run: str) -> list[str]:
    """Split characters of scripts without spaces off a run of characters, each with its marks."""
    if not _UNSPACED.search(run):
        return [run]
    found: list[str] = []
    alone = True  # whether the next character begins a word
    for character in run:
        is_mark = unicodedata.category(character)[0] == "M"
        unspaced = not is_mark and bool(_UNSPACED.match(character))
        if found and (is_mark or not (alone or unspaced)):
            found[-1] += character
        else:
            found.append(character)
        alone = alone if is_mark else unspaced
    return found
