"""A report as one HTML page without anything from elsewhere."""

import html
from collections.abc import Iterator, Sequence
from typing import Any

from peft_lightning.data.audit.report import Report
from peft_lightning.data.audit.terminal import percent
from peft_lightning.data.tokens.marked_tokens import MarkedToken, printable

STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --page: #fff; --mark: #c9f0cf; --line: #bbb;
  --special: #8a4b00; --bar: #3a7; --over: #c44; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6e6; --page: #161616; --mark: #1f4d2a;
  --line: #555; --special: #f0b060; --bar: #4b8; --over: #e66; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
pre { font: 13px/1.6 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere;
  border: 1px solid var(--line); border-radius: 4px; padding: .6rem; }
table { border-collapse: collapse; } td, th { border-bottom: 1px solid var(--line);
  padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
td.n { text-align: right; } h3 { font: 13px ui-monospace, monospace; margin-bottom: .2rem; }
.loss { background: var(--mark); } .special { color: var(--special); }
svg text { fill: var(--text); font: 11px system-ui, sans-serif; }
.bar { fill: var(--bar); } .over { fill: var(--over); } .note { opacity: .75; }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def report_page(report: Report, title: str) -> str:
    """Return the page of a report.

    Everything that comes from a row is escaped, and a policy forbids scripts and other resources.

    Args:
        report: The report.
        title: The name of the data.
    """
    body = [
        f"<h1>{_escaped(title)}</h1>",
        _table("Findings", ["rows", "what", "where"], list(_findings(report, is_note=False))),
        _table("Notes", ["rows", "what", "where"], list(_findings(report, is_note=True))),
        _table("Counts", [], list(_counts(report))),
        *(f"<p>{_escaped(line)}</p>" for line in report.lines),
        "<h2>Lengths in tokens</h2>",
        _histogram(report.counts["lengths"]),
        "<h2>Rows</h2><p>Tokens in the loss are <span class=loss>like this</span>, special tokens"
        " <span class=special>like this</span>.</p>",
        *(f"<h3>{_escaped(r.source)}</h3><pre>{_tokens(r.tokens)}</pre>" for r in report.rows),
    ]
    return (
        "<!doctype html><!-- audit -->\n<html lang=en><head><meta charset=utf-8>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name=viewport content="width=device-width">\n'
        f"<title>{_escaped(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _escaped(text: Any) -> str:
    return html.escape(printable(str(text)), quote=True)


def _tokens(tokens: Sequence[MarkedToken]) -> str:
    """Return the tokens of a row, each with its id and weight as its tooltip."""
    return "".join(
        f'<span class="{"loss" if token.weight else ""}{" special" if token.is_special else ""}"'
        f' title="{token.id}, weight {token.weight:g}">'
        f"{f'<sup>{token.weight:g}</sup>' if token.weight not in (0, 1) else ''}"
        f"{_escaped(token.text)}</span>"
        for token in tokens
    )


def _findings(report: Report, is_note: bool) -> Iterator[list[str]]:
    for finding in report.findings:
        if finding.is_note != is_note:
            continue
        places = finding.examples or [(finding.example, finding.detail)]
        where = "<br>".join(_escaped(f"{p}: {text}" if text else p) for p, text in places)
        yield [f"{finding.count:,}", _escaped(finding.kind), where]


def _counts(report: Report) -> Iterator[list[str]]:
    counts = report.counts
    yield [f"{counts['read']:,}", "rows read"]
    yield [f"{counts['kept']:,}", "rows kept"]
    yield from (
        [f"{n:,}", f"left out: {_escaped(reason)}"] for reason, n in counts["left_out"].items()
    )
    yield [f"{counts['sequences']:,}", "sequences"]
    yield [f"{counts['tokens']:,}", "tokens"]
    yield [percent(counts["share_in_loss"]), "of them in the loss"]
    for name, split in counts["splits"].items():
        yield [f"{split['sequences']:,}", f"rows of {_escaped(name)}"]
    for label, number in counts["answers"].get("labels", {}).items():
        yield [f"{number:,}", f"answer {_escaped(label)}"]
    yield from ([percent(share), _escaped(name)] for name, share in counts["scripts"].items())


def _table(title: str, header: list[str], rows: list[list[str]]) -> str:
    head = f"<tr>{''.join(f'<th>{cell}</th>' for cell in header)}</tr>" if header else ""
    lines = [
        "<tr>"
        + "".join(f"<td{' class=n' * (i == 0)}>{c}</td>" for i, c in enumerate(row))
        + "</tr>"
        for row in rows
    ]
    body = f"<table>{head}{''.join(lines)}</table>" if rows else "<p>None.</p>"
    return f"<h2>{title}</h2>{body}"


def _histogram(lengths: dict[str, Any]) -> str:
    """Return the histogram as an SVG; bars beyond ``max_length`` have another colour."""
    if "max" not in lengths:
        return "<p>None.</p>"
    bars = lengths["histogram"]
    most = max(bar["count"] for bar in bars)
    width, height, wide = 640, 160, 640 / len(bars)
    shapes = []
    for i, bar in enumerate(bars):
        tall = height * bar["count"] / most
        kind = "over" if bar["from"] > lengths["max_length"] else "bar"
        shapes.append(
            f'<rect class={kind} x="{i * wide:.1f}" y="{height - tall:.1f}"'
            f' width="{max(1, wide - 2):.1f}" height="{tall:.1f}">'
            f"<title>{bar['from']} to {bar['to']} tokens: {bar['count']}</title></rect>"
        )
    keeps = ", ".join(f"{length:,} keeps {share} %" for share, length in lengths["keeps"].items())
    return (
        f'<svg viewBox="0 0 {width} {height + 20}" width="{width}" role=img'
        f' aria-label="histogram of the lengths">{"".join(shapes)}'
        f'<text x="0" y="{height + 15}">{bars[0]["from"]:,}</text>'
        f'<text x="{width}" y="{height + 15}" text-anchor="end">{bars[-1]["to"]:,}</text></svg>'
        f"<p>{lengths['min']:,} to {lengths['max']:,}, median {lengths['median']:,}, 95 % at most"
        f" {lengths['p95']:,}. max_length {lengths['max_length']:,}: {lengths['longer']:,} rows are"
        f" longer; {keeps}.</p>"
    )
