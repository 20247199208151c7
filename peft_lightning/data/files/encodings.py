"""Encodings of text: the one that the user names, and the one that bytes look like."""

import codecs
import encodings.aliases
import re
import unicodedata
from collections import Counter
from collections.abc import Callable

from peft_lightning.messages import UserError, did_you_mean

BYTE_ORDER_MARKS = (  # those of four bytes first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8"),
)
MIN_SCORE = 0.85  # of the characters beyond ASCII are common ones of the encoding's languages
MIN_NULS = 4  # a line's end and the quotes of a key
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]+")
_EXCERPT = re.compile(r"""[^"\t\r\n{}\[\]]{0,12}[^\x00-\x7f][^"\t\r\n{}\[\]]{0,16}""")


def check_encoding(name: str) -> str:
    """Return Python's name of an encoding of text.

    Raises:
        UserError: If there is none of that name; suggests the most similar one.
    """
    try:
        codec = codecs.lookup(name)
        b"a".decode(name)
    except UnicodeDecodeError:  # an encoding of two bytes a character
        return codec.name
    except (LookupError, ValueError, UnicodeError):  # unknown, or no encoding of text
        known = {a.replace("_", "-") for a in encodings.aliases.aliases if not a[0].isdigit()}
        hint = did_you_mean(name, known | {"utf-8", "utf-16", "windows-1252", "cp949"})
        raise UserError(
            f"data.encoding {name!r} is no encoding of text{hint or '; write utf-16, cp949, cp932'}"
            f"{'' if hint else ', gb18030 or windows-1252, or leave it out for UTF-8'}"
        ) from None
    return codec.name


def marked_encoding(head: bytes) -> str | None:
    """Return the encoding whose byte order mark ``head`` begins with, if any."""
    return next((name for mark, name in BYTE_ORDER_MARKS if head.startswith(mark)), None)


def is_ascii_compatible(name: str) -> bool:
    """Whether text in the encoding can be divided at the byte of a line's end."""
    structure = '{"a": 1,\t}\r\n'
    return structure.encode(name) == structure.encode()


def guess_encoding(sample: bytes) -> tuple[str, str] | None:
    """Return the encoding that ``sample`` looks like, and an excerpt beyond ASCII as it reads it.

    Tried in this order, and a stricter one first: UTF-32 and UTF-16 by a byte order mark or by
    where the NUL bytes are, Korean, Japanese, Chinese and Cyrillic encodings by the share of common
    characters, windows-1252 if single bytes stand between letters.

    Args:
        sample: The beginning of a file; a character may be cut at its end.

    Returns:
        A name for ``data.encoding`` and the excerpt; None if the sample is UTF-8 or like nothing.
    """
    name = marked_encoding(sample) or _by_nul_bytes(sample)
    if name is None and not is_utf8(sample):
        found = ((name, _decoded(sample, name), score) for name, score in CANDIDATES)
        name = next((n for n, text, score in found if text and score(text) >= MIN_SCORE), None)
    if name is None or name == "utf-8":
        return None
    return name, excerpt(_decoded(sample, name) or "")


def is_utf8(sample: bytes) -> bool:
    """Whether ``sample`` is UTF-8, a character cut at its end aside."""
    return _decoded(sample, "utf-8") is not None


def excerpt(text: str) -> str:
    """Return a few words of ``text`` around its first characters beyond ASCII."""
    found = _EXCERPT.search(text)
    return " ".join(found[0].split()) if found else ""


def _decoded(sample: bytes, name: str) -> str | None:
    try:
        return codecs.getincrementaldecoder(name)().decode(sample)
    except UnicodeDecodeError:
        return None


def _by_nul_bytes(sample: bytes) -> str | None:
    """Return UTF-16 or UTF-32 if NUL bytes are where ASCII characters have them."""
    sample = sample[: len(sample) // 4 * 4][: 2**16]
    if sample.count(0) < max(MIN_NULS, len(sample) // 20):  # a damaged file may have a few
        return None
    zeros = [sample[i::4].count(0) / (len(sample) // 4) for i in range(4)]
    if min(zeros[2:]) > 0.9 > zeros[0] or min(zeros[:2]) > 0.9 > zeros[3]:
        return "utf-32-le" if zeros[0] < zeros[3] else "utf-32-be"
    even, odd = zeros[0] + zeros[2], zeros[1] + zeros[3]
    if max(even, odd) < 10 * min(even, odd):
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _share(text: str, is_common: Callable[[str], bool]) -> float:
    """Return the share of common letters among those beyond ASCII.

    It is 0 where they are fewer than the other characters, or stand alone between ASCII ones.
    """
    runs = _BEYOND_ASCII.findall(text)
    counts = Counter("".join(runs))
    letters = {c: n for c, n in counts.items() if not _is_punctuation(c)}
    if 2 * sum(letters.values()) < counts.total() or 2 * counts.total() < 3 * len(runs):
        return 0.0
    common = sum(n for letter, n in letters.items() if is_common(letter))
    return common / max(1, sum(letters.values()))


def _in_rows(character: str, codec: str, first: int, last: int) -> bool:
    """Whether the character is two bytes of ``codec``, the first of them in the given rows."""
    code = character.encode(codec, "ignore")
    return len(code) == 2 and first <= code[0] <= last


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character)[0] in "PSZ"


def _is_kana(character: str) -> bool:
    return "\u3041" <= character <= "\u30ff"


def _korean(text: str) -> float:
    """Hangul syllables of KS X 1001: other encodings read as CP949 give rarer ones and Hanja."""
    return _share(text, lambda c: _in_rows(c, "euc_kr", 0xB0, 0xC8) or "\u3131" <= c <= "\u318e")


def _japanese(text: str) -> float:
    """Kana, at least a tenth of the characters, and Kanji of level 1."""
    if _share(text, _is_kana) < 0.1:
        return 0.0
    return _share(text, lambda c: _is_kana(c) or _in_rows(c, "shift_jis", 0x88, 0x98))


def _simplified_chinese(text: str) -> float:
    """Hanzi of level 1 of GB 2312."""
    return _share(text, lambda c: _in_rows(c, "gb2312", 0xB0, 0xD7))


def _traditional_chinese(text: str) -> float:
    """Hanzi of level 1 of Big5."""
    return _share(text, lambda c: _in_rows(c, "big5", 0xA4, 0xC6))


def _cyrillic(text: str) -> float:
    """Cyrillic letters, most of them small: KOI8-R and windows-1251 swap the two."""
    letters = [c for c in text if "\u0401" <= c <= "\u045f"]
    if 2 * sum(letter.islower() for letter in letters) <= len(letters):
        return 0.0
    return _share(text, lambda c: "\u0401" <= c <= "\u045f")


def _western(text: str) -> float:
    """Letters with accents and typographic marks: seldom more than two in a row."""
    runs = _BEYOND_ASCII.findall(text)
    return 1.0 if sum(map(len, runs)) <= 2 * len(runs) else 0.0


CANDIDATES: tuple[tuple[str, Callable[[str], float]], ...] = (
    ("cp949", _korean),
    ("cp932", _japanese),
    ("euc_jp", _japanese),
    ("gb18030", _simplified_chinese),
    ("big5", _traditional_chinese),
    ("windows-1251", _cyrillic),
    ("koi8-r", _cyrillic),
    ("windows-1252", _western),
)
