"""The report of an audit as a page for a browser."""

from collections.abc import Iterator
from typing import Any

from peft_lightning.data.audit.findings import AuditFinding
from peft_lightning.data.audit.report import Report
from peft_lightning.data.audit.terminal import percent
from peft_lightning.reports.page import Html, Page, escaped, paragraph
from peft_lightning.reports.tables import Cell, table
from peft_lightning.reports.token_text import rows_block


def audit_page(report: Report, title: str) -> str:
    """Return the page of an audit, which needs no script.

    Args:
        report: What the audit tells.
        title: The name of the data.
    """
    page = Page(title, kind="audit", is_scripted=False)
    page.section("Findings", _findings(report, is_note=False))
    page.section("Notes", _findings(report, is_note=True))
    counts = table(["number", "of"], list(_counts(report)), sortable=False, filterable=False)
    page.section("Counts", counts, *(paragraph(line) for line in report.lines))
    page.section("Lengths in tokens", _histogram(report.counts["lengths"]))
    page.section("Rows", rows_block(report.rows))
    return page.html()


def _findings(report: Report, is_note: bool) -> Html:
    rows = [
        [finding.count, finding.kind, _places(finding)]
        for finding in report.findings
        if finding.is_note == is_note
    ]
    return table(["rows", "what", "where"], rows, sortable=False, filterable=False)


def _places(finding: AuditFinding) -> Html:
    places = finding.examples or [(finding.example, finding.detail)]
    return Html("<br>".join(escaped(f"{p}: {text}" if text else p) for p, text in places))


def _counts(report: Report) -> Iterator[list[Any]]:
    counts = report.counts
    yield [counts["read"], "rows read"]
    yield [counts["kept"], "rows kept"]
    yield from ([n, f"left out: {reason}"] for reason, n in counts["left_out"].items())
    yield [counts["sequences"], "sequences"]
    yield [counts["tokens"], "tokens"]
    yield [_share(counts["share_in_loss"]), "of them in the loss"]
    for name, split in counts["splits"].items():
        yield [split["sequences"], f"rows of {name}"]
    for label, number in counts["answers"].get("labels", {}).items():
        yield [number, f"answer {label}"]
    yield from ([_share(share), name] for name, share in counts["scripts"].items())


def _share(share: float) -> Cell:
    return Cell(percent(share), share)


def _histogram(lengths: dict[str, Any]) -> Html:
    """Return the histogram as an SVG; bars beyond ``max_length`` have another colour."""
    if "max" not in lengths:
        return paragraph("None.")
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
    return Html(
        f'<svg viewBox="0 0 {width} {height + 20}" width="{width}" role=img'
        f' aria-label="histogram of the lengths">{"".join(shapes)}'
        f'<text x="0" y="{height + 15}">{bars[0]["from"]:,}</text>'
        f'<text x="{width}" y="{height + 15}" text-anchor="end">{bars[-1]["to"]:,}</text></svg>'
        f"<p>{lengths['min']:,} to {lengths['max']:,}, median {lengths['median']:,}, 95 % at most"
        f" {lengths['p95']:,}. max_length {lengths['max_length']:,}: {lengths['longer']:,} rows are"
        f" longer; {keeps}.</p>"
    )
