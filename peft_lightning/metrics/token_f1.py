"""F1 of the words of an answer, as the evaluation of SQuAD (Rajpurkar et al. 2016) computes it."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter

from peft_lightning.metrics.words import characters_of_unspaced


def token_f1(answer: str, reference: str) -> float:
    """Return 2PR / (P + R) of the words that both have, each as often as both have it.

    P is their share of the answer's words, R of the reference's. If one has no words, it is 1 if
    neither has, else 0, as in SQuAD 2.0.
    """
    given, wanted = normalized_words(answer), normalized_words(reference)
    if not given or not wanted:
        return float(given == wanted)
    common = (Counter(given) & Counter(wanted)).total()
    return 2 * common / (len(given) + len(wanted))  # = 2PR / (P + R)


def normalized_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation, a, an and the.

    Punctuation is that of Unicode, and a character of a script without spaces is a word, as in the
    evaluation of MLQA (Lewis et al. 2020); of ASCII text nothing else than SQuAD's is removed.
    """
    lower = unicodedata.normalize("NFC", text.lower())
    kept = "".join(c for c in lower if not _is_punctuation(c))
    without_articles = re.sub(r"\b(a|an|the)\b", " ", kept)
    return [word for run in without_articles.split() for word in characters_of_unspaced(run)]


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character)[0] == "P"
