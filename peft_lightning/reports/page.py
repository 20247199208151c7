"""A page for a browser that is one HTML file: sections of tables, figures and text.

It needs nothing from elsewhere, and a policy forbids every request and every script but its own.
Text is escaped wherever it comes from; what is HTML already is ``Html``.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from peft_lightning.data.tokens.marked_tokens import printable

Kind = Literal["good", "note", "warning", "error"]


class Html(str):
    """Text that is HTML: a block of a page, or a part of one that is put in as it is."""


def escaped(text: Any) -> Html:
    """Return ``text`` as HTML that shows it, control characters included.

    Args:
        text: What to show; ``Html`` stays as it is.
    """
    return text if isinstance(text, Html) else Html(html.escape(printable(str(text)), quote=True))


def paragraph(*parts: Any) -> Html:
    """Return a paragraph of texts and ``Html``, one after the other."""
    return Html(f"<p>{''.join(map(escaped, parts))}</p>")


def code(text: str) -> Html:
    """Return ``text`` as it is, in a fixed-width font; long lines are wrapped."""
    return Html(f"<pre>{escaped(text)}</pre>")


def callout(kind: Kind, text: Any) -> Html:
    """Return a text that stands out.

    Args:
        kind: good, note, warning or error: said in its first word too, not by colour alone.
        text: The text.
    """
    word = "" if kind in ("good", "note") else f"<strong>{kind.capitalize()}.</strong> "
    return Html(f'<p class="callout {kind}">{word}{escaped(text)}</p>')


def details(summary: Any, *blocks: Html) -> Html:
    """Return blocks that are shown on a click at ``summary``."""
    return Html(f"<details><summary>{escaped(summary)}</summary>{''.join(blocks)}</details>")


def figure(svg: str, caption: Any = "") -> Html:
    """Return a plot of ``reports.plots`` with its caption."""
    below = f"<figcaption>{escaped(caption)}</figcaption>" if caption else ""
    return Html(f"<figure>{svg}{below}</figure>")


def figures(*drawn: Html) -> Html:
    """Return figures side by side where the window is wide enough."""
    return Html(f"<div class=figures>{''.join(drawn)}</div>")


def facts(pairs: Sequence[tuple[str, Any]]) -> Html:
    """Return names with their values, such as the sizes of a run, as tiles."""
    tiles = "".join(f"<div><dt>{escaped(n)}</dt><dd>{escaped(v)}</dd></div>" for n, v in pairs)
    return Html(f"<dl class=facts>{tiles}</dl>")


def link(target: str, text: Any) -> Html:
    """Return a link to a file by its path relative to the page, or to a section (``#name``)."""
    return Html(f'<a href="{html.escape(target, quote=True)}">{escaped(text)}</a>')


class Page:
    """A page, which grows by sections.

    Args:
        title: Its title.
        description: What it is, in a sentence below the title; empty for none.
        refresh_seconds: A browser loads the page anew every so many seconds; None for never.
        kind: A word in the first line of the file, by which a program knows it.
        is_scripted: Whether tables are sorted, filtered and opened by a script; else there is none.
    """

    def __init__(
        self,
        title: str,
        description: Any = "",
        refresh_seconds: int | None = None,
        kind: str = "report",
        is_scripted: bool = True,
    ) -> None:
        self.title = title
        self.description = description
        self.refresh_seconds = refresh_seconds
        self.kind, self.is_scripted = kind, is_scripted
        self._top: list[Html] = []
        self._sections: list[tuple[str, str]] = []

    def top(self, *blocks: Html) -> None:
        """Add blocks between the title and the first section: what a reader must see first."""
        self._top += blocks

    def section(self, heading: str, *blocks: Html, note: Any = None) -> None:
        """Add a section.

        Args:
            heading: Its heading; the page has a list of them if there are more than three.
            blocks: What is in it.
            note: How to read it, in small print below the heading.
        """
        small = f"<p class=note>{escaped(note)}</p>" if note is not None else ""
        self._sections.append((heading, small + "".join(blocks)))

    def html(self) -> str:
        """Return the file."""
        script = resource("page.js") if self.is_scripted else ""
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        if script:
            digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
            policy += f"; script-src 'sha256-{digest}'"
            script = f"<script>{script}</script>\n"
        refresh = (
            f"<meta http-equiv=refresh content={self.refresh_seconds}>\n"
            if self.refresh_seconds
            else ""
        )
        lead = f"<p class=lead>{escaped(self.description)}</p>" if self.description else ""
        body = f"<header><h1>{escaped(self.title)}</h1>{lead}</header>{''.join(self._top)}"
        return (
            f"<!doctype html><!-- {self.kind} -->\n<html lang=en><head><meta charset=utf-8>\n"
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            '<meta name=viewport content="width=device-width, initial-scale=1">\n'
            f"{refresh}<title>{escaped(self.title)}</title>\n"
            f"<style>{resource('page.css')}</style></head>\n<body>\n"
            f"{body}{self._contents()}\n<main>{''.join(self._numbered())}</main>\n"
            f"{script}</body></html>\n"
        )

    def _contents(self) -> str:
        if len(self._sections) <= 3:
            return ""
        links = (link(f"#s{i}", name) for i, (name, _) in enumerate(self._sections, 1))
        return f'<nav aria-label="Sections">{" ".join(links)}</nav>'

    def _numbered(self) -> list[str]:
        return [
            f'<section id=s{i} aria-labelledby="h{i}"><h2 id=h{i}>{escaped(name)}</h2>'
            f"{text}</section>\n"
            for i, (name, text) in enumerate(self._sections, 1)
        ]


@cache
def resource(name: str) -> str:
    """Return the text of a file of this folder: the style or the script of pages."""
    return (files("peft_lightning.reports") / name).read_text(encoding="utf-8")
