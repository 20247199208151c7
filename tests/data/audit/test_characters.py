"""Scripts and odd characters."""

import pytest

from peft_lightning.data.audit.characters import KINDS, odd_characters, scripts
from peft_lightning.data.audit.shingles import Texts


def kinds(*texts: str) -> list[list[str]]:
    odd, _ = odd_characters(Texts.of(texts))
    return [[kind for bit, kind in enumerate(KINDS) if value >> bit & 1] for value in odd.tolist()]


def misread(text: str, encoding: str) -> str:
    return text.encode().decode(encoding)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a \ufffd b", "replacement character U+FFFD"),
        ("a\x00b", "control character"),
        ("\x1b[31m", "control character"),
        ("zero\u200bwidth", "invisible character"),
        ("\ufeffmark", "invisible character"),
        ("soft\u00adhyphen", "invisible character"),
        ("\u202eevil", "bidirectional control character"),
        ("\ue123", "private use character"),
        ("cut \ud83d", "lone surrogate"),
        (misread("café", "cp1252"), "mojibake"),
        (misread("naïve Äpfel", "latin-1").replace("\x84", ""), "mojibake"),
        (misread("있", "cp1252") + misread("수", "cp1252"), "mojibake"),
        ("it" + "â€™" + "s", "mojibake"),
        ("100 Â°C", "mojibake"),
        (misread("Привет", "latin-1").replace("\x9f", "\x9f"), "mojibake"),
    ],
)
def test_an_odd_character_is_found_in_the_text_that_has_it(text, kind):
    found = kinds("before", text, "after")
    assert kind in found[1]
    assert found[0] == found[2] == []


@pytest.mark.parametrize(
    "text",
    [
        "tabs\tand\nlines\r\n",
        "café naïve Äpfel Spaß“ “quoted” — dash… €5",
        "« à » « Â » Ãgua NÃO São Ângela",
        "안녕하세요 你好 こんにちは Привет שלום مرحبا नमस्ते",
        "👩‍👩‍👧 emoji with joiners, می‌خواهم",
        "x² ½ µ ß ÿ",
        "",
    ],
)
def test_ordinary_text_of_any_language_is_not_odd(text):
    assert kinds(text) == [[]]


def test_scripts_are_shares_of_the_letters():
    _, counts = odd_characters(Texts.of(["abcd 12 !?", "абв", "한국", "かナ漢"]))
    assert scripts(counts) == pytest.approx(
        {
            "Latin": 4 / 12,
            "Cyrillic": 3 / 12,
            "Hangul": 2 / 12,
            "Hiragana": 1 / 12,
            "Katakana": 1 / 12,
            "Han": 1 / 12,
        }
    )
    assert scripts(odd_characters(Texts.of(["12 !"]))[1]) == {}
