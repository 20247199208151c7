"""A report as text for a terminal or a file."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

from peft_lightning.data.audit.findings import AuditFinding
from peft_lightning.data.audit.report import Report
from peft_lightning.data.tokens.marked_tokens import GREEN, OPEN, RESET, marked_text, printable

WIDTH = 40  # characters of the longest bar
MOST_LABELS = 20
MOST_SCRIPTS = 6


def report_text(report: Report, color: bool = False) -> str:
    """Return the report as text.

    Args:
        report: The report.
        color: Whether to mark tokens in the loss by colour, instead of ⟦ and ⟧.
    """
    mark = f"{GREEN}like this{RESET}" if color else f"{OPEN}like this⟧"
    lines = [f"{len(report.rows)} rows; tokens in the loss {mark}:", ""] if report.rows else []
    for row in report.rows:
        lines += [f"--- {printable(row.source)}", marked_text(row.tokens, color), ""]
    lines += [*_counts(report.counts), *(f"  {line}" for line in report.lines), ""]
    lines += [*_lengths(report.counts["lengths"]), ""]
    lines += _findings(report.findings)
    return "\n".join(lines)


def percent(share: float) -> str:
    """Return a share in per cent, and a small one not as 0."""
    return f"{share:.1%}" if share >= 0.0005 or not share else "under 0.05%"


def _counts(counts: dict[str, Any]) -> Iterator[str]:
    left_out = "".join(f" + {reason}: {n:,}" for reason, n in counts["left_out"].items())
    yield f"rows      {counts['read']:,} read = {counts['kept']:,} kept{printable(left_out)}"
    for source in counts["sources"]:
        yield printable(f"          {source['source']}: {source['format']}")
    if counts["sequences"] != counts["kept"]:
        spread = ", ".join(f"{n} of {k}" for k, n in counts["sequences_per_row"].items())
        yield f"sequences {counts['sequences']:,}; rows by number of sequences: {spread}"
    yield (
        f"tokens    {counts['tokens']:,}, {counts['tokens_in_loss']:,} in the loss"
        f" ({percent(counts['share_in_loss'])})"
    )
    for name, split in counts["splits"].items():
        yield (
            f"          {name}: {split['sequences']:,} rows, {split['tokens']:,} tokens,"
            f" {percent(split['share_in_loss'])} in the loss"
        )
    answers = counts["answers"]
    if "max" in answers:
        yield (
            f"answers   {answers['distinct']:,} distinct, of {answers['min']:,} to"
            f" {answers['max']:,} tokens, median {answers['median']:,}"
        )
    labels = list(answers.get("labels", {}).items())
    for label, number in labels[:MOST_LABELS]:
        yield f"          {number:>9,}  {printable(label)}"
    if len(labels) > MOST_LABELS:
        yield f"          and {len(labels) - MOST_LABELS} further labels"
    if counts["roles"]:
        yield "roles     " + ", ".join(f"{name} {n:,}" for name, n in counts["roles"].items())
    shown = list(counts["scripts"].items())[:MOST_SCRIPTS]
    yield "scripts   " + ", ".join(f"{name} {percent(share)}" for name, share in shown)


def _lengths(lengths: dict[str, Any]) -> Iterator[str]:
    if "max" not in lengths:
        return
    yield (
        f"lengths   {lengths['min']:,} to {lengths['max']:,} tokens, median {lengths['median']:,},"
        f" 95 % at most {lengths['p95']:,}"
    )
    keeps = ", ".join(f"{length:,} keeps {share} %" for share, length in lengths["keeps"].items())
    yield (
        f"          max_length {lengths['max_length']:,}: {lengths['longer']:,} rows are longer;"
        f" {keeps}"
    )
    most = max(bar["count"] for bar in lengths["histogram"])
    groups = itertools.groupby(lengths["histogram"], key=lambda bar: bar["count"] > 0)
    for has_rows, group in groups:
        bars = list(group)
        if not has_rows and len(bars) > 2:
            yield "        ..."
            continue
        for bar in bars:
            filled = "#" * math.ceil(WIDTH * bar["count"] / most)
            beyond = " > max_length" if bar["from"] > lengths["max_length"] else ""
            yield f"  {bar['to']:>9,} {filled:<{WIDTH}} {bar['count']:,}{beyond}"


def _findings(findings: list[AuditFinding]) -> Iterator[str]:
    if not findings:
        yield "no findings and no notes"
        return
    for title, is_note in (("findings", False), ("notes", True)):
        some = [finding for finding in findings if finding.is_note == is_note]
        if not some:
            yield f"no {title}"
            continue
        yield f"{title}:"
        for finding in some:
            yield f"  {finding.count:>9,}  {printable(finding.kind)}"
            for place, detail in finding.examples or [(finding.example, finding.detail)]:
                yield printable(f"             {place}{': ' if detail else ''}{detail}")
