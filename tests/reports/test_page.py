"""Pages: one file, escaped, and usable without its script."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from peft_lightning.reports.page import (
    Html,
    Page,
    callout,
    code,
    details,
    facts,
    link,
    paragraph,
)
from peft_lightning.reports.tables import Cell, number, table

EVIL = "</style><script>alert(1)</script>\" onload='x' \x1b[2J \u202e"
VOID = {"meta", "link", "input", "br", "path", "use", "image"}


class Tags(HTMLParser):
    """The tags of a page with their attributes, and its text; checks that they nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def full_page():
    page = Page(f"title {EVIL}", f"description {EVIL}", refresh_seconds=30)
    page.top(callout("warning", EVIL), facts([(EVIL, EVIL)]))
    rows = [[f"{EVIL} {i}", i, Cell(EVIL, EVIL, EVIL)] for i in range(9)]
    opened = [code(EVIL)] * 9
    page.section("table", table([EVIL, "n", "c"], rows, opened=opened), note=EVIL)
    page.section("text", paragraph(EVIL, link('a"b', EVIL)), details(EVIL, code(EVIL)))
    for name in ("third", "fourth"):
        page.section(name)
    return page.html()


def test_no_text_can_act_in_a_page():
    page = Tags(full_page())
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not any(name.startswith("on") for _, found in page.tags for name in found)
    assert "\x1b" not in page.text
    assert "\u202e" not in page.text
    assert page.text.count("<script>alert(1)</script>") > 20  # shown as it is


def test_the_policy_allows_no_request_and_no_other_script():
    text = full_page()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    script = re.search(r"<script>(.*)</script>\n</body>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", text)


def test_a_page_of_many_sections_lists_them():
    tags = Tags(full_page()).tags
    ids = {found["id"] for tag, found in tags if tag == "section"}
    targets = {found["href"][1:] for tag, found in tags if found.get("href", "").startswith("#")}
    assert ids == targets == {"s1", "s2", "s3", "s4"}
    short = Page("t")
    short.section("one")
    assert "<nav" not in short.html()


def test_a_page_is_loaded_anew_only_if_asked_to():
    assert "http-equiv=refresh content=30>" in full_page()
    assert "refresh" not in Page("t").html().split("<style>")[0]


def test_cells_have_the_value_that_sorts_them():
    text = table(
        ["name", "loss", "size"],
        [["b", 0.25, Cell("1 KiB", 1024)], ["a", None, Cell("2 B", 2)], ["c", float("nan"), None]],
    )
    values = [found.get("data-value") for tag, found in Tags(text).tags if tag == "td"]
    assert values == [None, "0.25", "1024", None, None, "2", None, None, None]
    kinds = [found.get("class") for tag, found in Tags(text).tags if tag in ("th", "td")]
    assert kinds == [None, "n", "n"] * 4


def test_a_table_has_a_filter_from_six_rows_on():
    assert "data-filter" not in table(["a"], [[i] for i in range(5)])
    assert "data-filter" in table(["a"], [[i] for i in range(6)])
    assert "data-filter" not in table(["a"], [[i] for i in range(6)], filterable=False)
    assert "data-sort" not in table(["a"], [[1]], sortable=False)


def test_without_the_script_rows_that_open_are_there():
    text = table(["a"], [["x"], ["y"]], opened=[Html("<p>inside</p>"), None])
    assert "hidden" not in text
    assert text.count("<tr class=more>") == text.count("inside") == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (1234567, "1,234,567"),
        (0.123456, "0.1235"),
        (12345.6, "12,346"),
        (-0.5, "\N{MINUS SIGN}0.5"),
        (0.00002, "2e-5"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_have_the_digits_that_count(value, text):
    assert number(value) == text
