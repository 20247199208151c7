"""The tables of a comparison: its groups, the differences of pairs, and its runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft_lightning.process.progress_format import clock
from peft_lightning.reports.comparison import (
    ComparedSet,
    Comparison,
    Estimate,
    GroupResult,
    RunResult,
)
from peft_lightning.reports.page import Html, escaped
from peft_lightning.reports.tables import Cell, number, table

MOST_IN_MATRIX = 10  # groups; of more, the differences are a list
MOST_PAIRS = 500
MINUS = "\N{MINUS SIGN}"
SIZES = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def group_table(one: ComparedSet) -> Html:
    """Return a line for each group: how good it is, how much of that is noise, what it costs."""
    options = _columns_of_options(one)
    columns = ["group", *options, "loss (\N{PLUS-MINUS SIGN} 95 %)", "to the best", "to the base"]
    columns += ["seeds", "seed spread", "token accuracy", *one.metrics, "bits per byte"]
    has_general = any("general_text" in group.scores for group in one.groups)
    columns += ["general text (to the base)"] * has_general
    columns += ["parameters", "adapter", "peak memory", "tokens/s", "time"]
    rows = []
    for group in one.groups:
        loss = group.scores["loss"]
        row: list[Any] = [group.name, *(_option(group.options.get(name)) for name in options)]
        row += [_loss(loss, group.to_compare.get("loss"))]
        row += [_to_best(group), _to_base(group)]
        row += [len({r.seed if r.seed is not None else r.name for r in group.runs}) or None]
        spread = group.seed_spread["loss"]
        row += [None if spread is None else Cell(f"{spread:.4f}", spread)]
        row += [_share(group.scores[name]) for name in ("token_accuracy", *one.metrics)]
        bits = one.bits_per_byte(loss.value)
        row += [None if bits is None else Cell(f"{bits:.3f}", bits)]
        row += [_general(group)] if has_general else []
        row += _costs(group.facts)
        rows.append(row)
    return table(columns, rows)


def pair_table(one: ComparedSet) -> Html:
    """Return the differences between groups: a matrix of few, a list of those beyond noise."""
    if len(one.groups) <= MOST_IN_MATRIX:
        return _matrix(one)
    found = [(a, b, d) for a, b, d in one.pairs if d.is_beyond_noise]
    found.sort(key=lambda pair: -abs(pair[2].value))
    rows = [
        [a, b, Cell(_difference(d), d.value), Cell(f"{d.p:.2g}", d.p)]
        for a, b, d in found[:MOST_PAIRS]
    ]
    told = f"{len(found):,} of {len(one.pairs):,} pairs differ beyond noise"
    told += f"; the {MOST_PAIRS} largest differences:" if len(found) > MOST_PAIRS else ":"
    columns = ["lower loss", "higher loss", "difference (95 % interval)", "corrected p"]
    return Html(f"<p>{escaped(told)}</p>{table(columns, rows)}")


def run_table(comparison: Comparison) -> Html:
    """Return a line for each run: how it ended, its loss, and the options that differ."""
    names = list(comparison.differences)
    columns = ["run", "status", "seed", "loss", "logged", "steps", *names]
    rows = [
        _run(run, comparison.differences)
        for one in comparison.sets
        for group in one.groups
        for run in group.runs
    ]
    rows += [_run(run, comparison.differences) for run in comparison.left]
    return table(columns, rows)


def _run(run: RunResult, differences: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    logged = run.record.summary.get("best_val_loss")
    is_whole = run.record.status == "finished" and run.status == "finished"
    return [
        run.name,
        Cell(run.status, run.status, kind="" if is_whole else "bad"),
        run.seed,
        None if run.loss is None else Cell(f"{run.loss:.4f}", run.loss),
        Cell(f"{logged:.4f}", logged) if isinstance(logged, int | float) else None,
        run.record.summary.get("steps"),
        *(_option(values.get(run.name)) for values in differences.values()),
    ]


def size(count: float | None) -> str | None:
    """Return a number of bytes with its unit."""
    if count is None:
        return None
    for unit, name in SIZES:
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} B"


def _matrix(one: ComparedSet) -> Html:
    """Return each group against each: how much lower its loss is, if that is beyond noise."""
    found = {(a, b): d for a, b, d in one.pairs}
    rows = []
    for row in one.groups:
        cells: list[Any] = [row.name]
        for column in one.groups:
            if row is column:
                cells.append("")
                continue
            d = found.get((row.name, column.name))
            sign = 1 if d is not None else -1
            d = d or found[column.name, row.name]
            value = sign * d.value
            if not d.is_beyond_noise:
                word = f"({_signed(value)})" if d.is_unclear else "\N{ALMOST EQUAL TO}"
                cells.append(Cell(word, value, f"{_difference(d)}, corrected p {d.p:.2g}"))
                continue
            kind = "good" if value < 0 else "bad"
            cells.append(Cell(_signed(value), value, f"corrected p {d.p:.2g}", kind))
        rows.append(cells)
    return table(["", *(group.name for group in one.groups)], rows, sortable=False)


def _loss(mean: Estimate, to_compare: Estimate | None) -> Cell:
    """Return a loss with the interval to compare it by; the whole one is under the mouse."""
    margin = (
        ""
        if to_compare is None
        else f" \N{PLUS-MINUS SIGN} {(to_compare.high - to_compare.low) / 2:.4f}"
    )
    whole = f"with the chance of the rows: {mean.low:.4f} to {mean.high:.4f}"
    return Cell(f"{mean.value:.4f}{margin}", mean.value, whole)


def _to_best(group: GroupResult) -> Any:
    if group.is_base:
        return Cell("", None)
    found = group.to_best.get("loss")
    if found is None:
        return Cell("best", 0.0, kind="good")
    if not found.is_beyond_noise:
        return _noise_cell(found)
    return Cell(_difference(found), found.value, kind="bad" if found.with_seeds else "")


def _to_base(group: GroupResult) -> Any:
    found = group.to_base.get("loss")
    if found is None:
        return Cell("", None)
    if not found.is_beyond_noise:
        return _noise_cell(found)
    kind = "good" if found.value < 0 else "bad"
    return Cell(_difference(found), found.value, kind=kind if found.with_seeds else "")


def _general(group: GroupResult) -> Cell:
    """Return the loss on general text, with its difference to the base."""
    loss, change = group.scores["general_text"], group.to_base.get("general_text")
    if change is None:
        return Cell(f"{loss.value:.4f}", loss.value)
    kind = ("good" if change.value < 0 else "bad") * change.is_beyond_noise
    return Cell(f"{loss.value:.4f} ({_signed(change.value)})", loss.value, kind=kind)


def _noise_cell(found: Estimate) -> Cell:
    word = "perhaps" if found.is_unclear else "within noise"
    return Cell(f"{word}: {_difference(found)}", found.value, f"corrected p {found.p:.2g}")


def _difference(found: Estimate) -> str:
    return f"{_signed(found.value)} ({_signed(found.low)} to {_signed(found.high)})"


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", MINUS)


def _share(found: Estimate) -> Cell:
    value, low, high = (100 * v for v in (found.value, found.low, found.high))
    return Cell(f"{value:.1f} % ({low:.0f} to {high:.0f})", found.value)


def _costs(facts: Mapping[str, float | None]) -> list[Any]:
    parameters, speed = facts.get("trainable_parameters"), facts.get("tokens_per_second")
    seconds = facts.get("train_seconds")
    return [
        None if parameters is None else Cell(f"{parameters:,.0f}", parameters),
        _size_cell(facts.get("adapter_bytes")),
        _size_cell(facts.get("peak_memory_bytes")),
        None if speed is None else Cell(number(round(speed)), speed),
        None if seconds is None else Cell(clock(seconds), seconds),
    ]


def _size_cell(count: float | None) -> Any:
    return None if count is None else Cell(size(count), count)


def _columns_of_options(one: ComparedSet) -> list[str]:
    """Return the options to show: those that the names of the groups do not tell already."""
    names = dict.fromkeys(name for group in one.groups for name in group.options)
    return list(names) if len(names) > 1 else []


def _option(value: Any) -> Any:
    if isinstance(value, list):
        return "+".join(map(str, value))
    return str(value) if isinstance(value, bool | dict) else value
