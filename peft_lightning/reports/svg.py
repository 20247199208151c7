"""matplotlib's SVG made fit for a page: its colours, its names under the mouse, its ids.

Colours are CSS variables of the page with a value for where there is none, such as the file opened
by itself; text is text in the font of the page.
"""

from __future__ import annotations

import hashlib
import html
import io
import re
from typing import Any

from peft_lightning.data.tokens.marked_tokens import printable

# distances of the first eight, and contrast with the page: tests/reports/test_plots.py
LIGHT = (
    *("#0166db", "#f25500", "#05a35e", "#c25098"),
    *("#916229", "#3395f0", "#474395", "#635b57"),
)
DARK = (
    *("#5b7ad1", "#e64a06", "#5db464", "#ffabbe"),
    *("#e6d753", "#22ceff", "#8a60ff", "#7d7f72"),
)
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)), (0, (10, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDEST_ON_A_PHONE = 600  # a wider plot scrolls in its own box there
INK = "#010203"  # stands for the colour of the page's text
DROPPED = ("font-family", "stroke-linejoin")  # from styles: the whole plot has them
SETTINGS: dict[Any, Any] = {  # of matplotlib, beside its defaults
    "svg.fonttype": "none",
    "font.size": 13.0,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": 13.0,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": INK,
    "grid.alpha": 0.14,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "text.parse_math": False,  # a name with two dollar signs is no formula
    "legend.frameon": False,
    "legend.fontsize": 13.0,
    "legend.handlelength": 2.6,
    "legend.columnspacing": 1.4,
    "legend.borderpad": 0.2,
    "legend.labelspacing": 0.3,
}
_METADATA: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
_VARIABLES = {color: f"var(--c{i}, {color})" for i, color in enumerate(LIGHT, 1)}
_VARIABLES[INK] = "currentColor"


def color_of(look: int) -> str:
    """Return the colour of the nth entry of a legend."""
    return LIGHT[look % len(LIGHT)]


def dash_of(look: int) -> Any:
    """Return its dashes: another colour comes with other dashes, up to the fifth entry."""
    return DASHES[look % len(DASHES)]


def marker_of(look: int) -> str:
    """Return its marker; colour, dashes and marker together are 280 looks."""
    return MARKERS[look % len(MARKERS)]


def svg_text(
    figure: Any, names: dict[str, str], description: str, scales: dict[str, str] | None = None
) -> str:
    """Return a figure of matplotlib as an ``<svg>`` element, the same for the same figure.

    Args:
        figure: The figure, in units of 1/72 inch, which are pixels here.
        names: Of its artists by their ``gid``: what is shown when the mouse is over one.
        description: What a screen reader says of the plot.
        scales: What the script of a page needs to read values off the curves: ``data`` attributes.
    """
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata=_METADATA)
    text = written.getvalue()
    width, height = (round(72 * inches) for inches in figure.get_size_inches())
    body = text[text.index("</defs>") + len("</defs>") : text.rindex("</svg>")]
    body = re.sub(r'style="([^"]*)"', _restyled, body)
    body = re.sub(r"(?<=[ (\"])-?\d+\.\d{2,}(?=[ \")\n])", _rounded, body)
    body = re.sub(
        r'(?<= d=")[^"]*', lambda d: re.sub(r"\s*\n\s*(?=[A-Za-z])", "", d[0]).strip(), body
    )
    body = body.replace("xlink:href", "href")
    body = re.sub(r'<g id="(series-\d+)">', lambda g: _named(names, g[1]), body)
    body = _numbered(re.sub(r"\n\s*", "\n", body).strip())
    kind = "plot wide" if width > WIDEST_ON_A_PHONE else "plot"
    given = "".join(f' data-{k}="{html.escape(v, quote=True)}"' for k, v in (scales or {}).items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
        f' aria-label="{html.escape(printable(description), quote=True)}"'
        f' font-family="system-ui, sans-serif" stroke-linejoin="round" class="{kind}"{given}>'
        f"\n{body}\n</svg>"
    )


def _restyled(style: re.Match[str]) -> str:
    """Return a style without the font, and with the colours of the page."""
    kept = [part.strip() for part in style[1].split(";")]
    kept = [
        part for part in kept if part and not part.startswith(("font-family", "stroke-linejoin"))
    ]
    text = re.sub(r"#[0-9a-f]{6}\b", lambda c: _VARIABLES.get(c[0], c[0]), ";".join(kept))
    return f'style="{text}"'


def _rounded(number: re.Match[str]) -> str:
    """Return a coordinate to a tenth of a pixel."""
    return f"{float(number[0]):.1f}".removesuffix(".0")


def _named(names: dict[str, str], gid: str) -> str:
    return f'<g class="series"><title>{html.escape(printable(names.get(gid, "")))}</title>'


def _numbered(body: str) -> str:
    """Return an SVG whose ids no other on the page has, unless both are the same.

    Only what is referred to keeps an id. The ids of matplotlib are random.
    """
    used = dict.fromkeys(re.findall(r'(?:url\(#|href="#)([\w.-]+)', body))
    body = re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in used else "", body)
    for i, name in enumerate(used):
        body = re.sub(rf"(?<=[#\"]){re.escape(name)}(?=[\")])", f"\0{i}", body)
    prefix = "p" + hashlib.sha256(body.encode()).hexdigest()[:8] + "-"
    return body.replace("\0", prefix)
