"""The page of a run, ``report.html``: how far it is, its curves, what it trains and on what."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from peft_lightning.messages import redacted, without_secrets
from peft_lightning.process.progress_format import clock
from peft_lightning.reports.page import (
    Html,
    Page,
    callout,
    details,
    facts,
    link,
    paragraph,
)
from peft_lightning.reports.run_curves import loss_curves, other_curves, training_curves
from peft_lightning.reports.run_facts import RunFacts
from peft_lightning.reports.run_record import RunRecord
from peft_lightning.reports.run_samples import samples_block
from peft_lightning.reports.tables import number, table
from peft_lightning.reports.token_text import rows_block

REPORT_FILE = "report.html"
REFRESH_SECONDS = 30
MOST_TOKENS = 400  # of a row
MOST_WARNINGS = 20
FILES = ("summary.json", "history.jsonl", "samples.jsonl", "config.yaml", "checkpoints", "logs")
RUNNING, FINISHED, KILLED = "running", "finished", "killed"


@dataclass(frozen=True)
class Moment:
    """The moment at which a page is written.

    Args:
        time: The time.
        status: running, finished, killed, or "stopped: " with the reason.
        step: Optimizer steps made.
        seconds_left: Estimate of the rest of the run; None if it is not known.
    """

    time: datetime
    status: str
    step: int
    seconds_left: float | None = None


def run_page(record: RunRecord, known: RunFacts, now: Moment) -> str:
    """Return the page of a run as HTML.

    Args:
        record: What is in its folder.
        known: What it knew at its start.
        now: How far it is.
    """
    is_running = now.status == RUNNING
    summary = {} if is_running else record.summary  # that of an earlier start, while it runs
    method = known.method or summary.get("method") or "Training"
    base = known.base_model or summary.get("base_model") or ""
    lead = f"{method} on {Path(base).name or base}" if base else method
    page = Page(record.name, lead, REFRESH_SECONDS if is_running else None)
    page.top(_status(now), _progress(now, known), facts(_facts(record, known, now)))
    page.top(*(callout("warning", text) for text in record.warnings[:MOST_WARNINGS]))
    page.section("Loss", loss_curves(record))
    if curves := training_curves(record):
        page.section("Training", curves)
    if samples := samples_block(record):
        note = "Greedy answers to the sample prompts; words that differ are marked."
        page.section("Samples", samples, note=note)
    if known.rows:
        page.section("Rows of training", rows_block(known.rows, MOST_TOKENS))
    if others := other_curves(record):
        page.section("Other metrics", others)
    page.section("Sizes and speed", *_sizes(record, known, summary))
    page.section("Configuration", *_configuration(record, known, summary))
    if files := _files(record):
        page.section("Files", files)
    return page.html()


def _status(now: Moment) -> Html:
    written = f"{now.time:%Y-%m-%d %H:%M:%S}"
    if now.status == RUNNING:
        return callout(
            "note",
            f"Running; last written at {written}. This page reloads itself. If that time is long "
            "past, the run was killed.",
        )
    if now.status == FINISHED:
        return callout("good", f"Finished; written at {written}.")
    if now.status == KILLED:
        return callout("error", f"The run ended without a word. Written at {written}.")
    return callout("warning", f"{now.status[0].upper()}{now.status[1:]}; written at {written}.")


def _progress(now: Moment, known: RunFacts) -> Html:
    if not known.total_steps or now.status == FINISHED:
        return Html("")
    return Html(
        f'<progress max={known.total_steps} value={now.step} aria-label="steps">{now.step}'
        f" of {known.total_steps}</progress>"
    )


def _facts(record: RunRecord, known: RunFacts, now: Moment) -> list[tuple[str, str]]:
    """Return the numbers that are looked at first."""
    of = f" of {known.total_steps:,}" if known.total_steps else ""
    found = [("steps", f"{now.step:,}{of}")]
    if now.seconds_left is not None and now.status == RUNNING:
        found.append(("time left", f"about {clock(now.seconds_left)}"))
    last = record.history[-1] if record.history else {}
    if last:
        found.append(("training time", clock(last["seconds"])))
        found.append(("epochs", f"{last['epoch']:.4g}"))
    for metric, name in (("train/loss", "training loss"), ("val/loss", "validation loss")):
        _, values = record.values(metric.split("/")[0], metric)
        if values:
            found.append((name, number(values[-1])))
            if metric == "val/loss" and len(values) > 1:
                found.append(("lowest validation loss", number(min(values))))
    return found


def _sizes(record: RunRecord, known: RunFacts, summary: dict[str, Any]) -> list[Html]:
    last = record.train_curve[-1]["metrics"] if record.train_curve else {}
    trained = sum(group[2] for group in known.trained) or summary.get("trainable_parameters", 0)
    total = known.total_parameters or summary.get("total_parameters", 0)
    rate = summary.get("tokens_per_second", last.get("tokens_per_second"))
    peak = summary.get("peak_memory_bytes", last.get("peak_memory_mib", 0) * 2**20)
    found = [
        ("trained parameters", f"{trained:,}" if trained else ""),
        ("of all", f"{trained / total:.3%} of {total:,}" if total else ""),
        ("bytes trained", size_text(sum(group[3] for group in known.trained))),
        ("tokens per second", number(rate) if rate else ""),
        ("peak memory", size_text(peak)),
        ("precision", " ".join(str(summary[k]) for k in ("precision", "dtype") if k in summary)),
        ("processes", summary.get("world_size", "")),
        ("threads", summary.get("threads", "")),
    ]
    blocks = [facts([(name, value) for name, value in found if value])]
    if known.trained:
        rows = [[p, n, k, k / total if total else None, size] for p, n, k, size in known.trained]
        columns = ["trained", "tensors", "parameters", "share of all", "bytes"]
        blocks.append(table(columns, rows))
    spent = summary.get("seconds", {})
    if spent:
        times = ", ".join(f"{name} {clock(seconds)}" for name, seconds in spent.items())
        blocks.append(paragraph(f"Time of the last start: {times}."))
    if paths := summary.get("paths"):
        shown = table(["part", "computed by"], [[str(k), str(v)] for k, v in paths.items()])
        blocks.append(details("How it is computed", shown))
    return blocks


def size_text(size: float) -> str:
    """Return a number of bytes as it is read best: 2.0 KiB, 1.4 GiB; nothing for none."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size:.0f} bytes" if size else ""


def _configuration(record: RunRecord, known: RunFacts, summary: dict[str, Any]) -> list[Html]:
    given = without_secrets(record.config or known.options)
    rows = [[name, _value(value)] for name, value in _flat(given).items()]
    blocks = [table(["option", "value"], rows)]
    if versions := summary.get("versions"):
        names = ", ".join(f"{name} {version}" for name, version in versions.items())
        blocks.append(paragraph(f"With {names}."))
    return blocks


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return nested options by their dotted names."""
    if not isinstance(value, dict) or not value:
        return {path: value}
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= _flat(inner, f"{path}.{name}" if path else str(name))
    return found


def _value(value: Any) -> str:
    return redacted(value if isinstance(value, str) else json.dumps(value, default=str))


def _files(record: RunRecord) -> Html | None:
    """Return links to the checkpoints and files of the run, relative to its folder."""
    named = [
        ("best checkpoint", record.best_checkpoint),
        ("last checkpoint", record.last_checkpoint),
    ]
    named += [(name, record.folder / name) for name in FILES]
    found = [
        f"<li>{link(_relative(path, record.folder), name)}</li>"
        for name, path in named
        if path is not None and path.exists()
    ]
    return Html(f"<ul>{''.join(found)}</ul>") if found else None


def _relative(path: Path, folder: Path) -> str:
    from urllib.parse import quote

    return quote(os.path.relpath(path, folder)) + "/" * path.is_dir()
