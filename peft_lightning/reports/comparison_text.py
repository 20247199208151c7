"""A comparison as Markdown, CSV, JSON and lines of JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from peft_lightning.reports.comparison import ComparedSet, Comparison, Estimate, GroupResult
from peft_lightning.reports.comparison_answers import answers_to
from peft_lightning.reports.comparison_tables import size

COSTS = ("trainable_parameters", "adapter_bytes", "peak_memory_bytes", "tokens_per_second")
MOST_PAIRS = 30


def as_markdown(comparison: Comparison, plots: Sequence[Sequence[tuple[str, str]]] = ()) -> str:
    """Return the comparison as Markdown: what follows first, then the tables.

    Args:
        comparison: The comparison.
        plots: Of each set, the files of its plots with their captions.
    """
    lines = [f"# {comparison.title}", ""]
    lines += [f"> {note}\n" for note in comparison.notes]
    for i, one in enumerate(comparison.sets, 1):
        if len(comparison.sets) > 1:
            lines += [f"## Set {i}: {one.base_model}, {one.data}", ""]
        lines += [f"**{one.conclusions[0]}**", "", *(f"- {s}" for s in one.conclusions[1:]), ""]
        lines += [
            f"Loss in nats per token on {one.rows:,} rows of {one.data} ({one.tokens:,.0f} tokens),"
            f" in {one.precision}, with 95 % intervals.",
            "",
            *_group_lines(one),
            "",
            *_pair_lines(one),
        ]
        for file, caption in plots[i - 1] if plots else ():
            lines += [f"![{_md(caption)}]({file})", "", _md(caption), ""]
    lines += ["| run | status | loss |", "|---|---|---|"]
    runs = [r for one in comparison.sets for g in one.groups for r in g.runs] + comparison.left
    for run in runs:
        loss = "" if run.loss is None else f"{run.loss:.4f}"
        lines.append(f"| {_md(run.name)} | {_md(run.status)} | {loss} |")
    return "\n".join(lines) + "\n"


def as_csv(comparison: Comparison) -> str:
    """Return a line for each run and for each base, with the numbers of its group."""
    options = list(comparison.differences)
    scores = list(dict.fromkeys(n for s in comparison.sets for g in s.groups for n in g.scores))
    heads = ["set", "group", "run", "seed", "status", "loss", *(n for n in scores if n != "loss")]
    heads += ["group_loss", "group_low", "group_high", "seed_spread"]
    for other in ("base", "best"):
        heads += [f"to_{other}", f"to_{other}_low", f"to_{other}_high", f"to_{other}_p"]
    heads += [*COSTS, "train_seconds", *options]
    table: list[dict[str, Any]] = []
    for i, one in enumerate(comparison.sets, 1):
        for group in one.groups:
            shared = {"set": i, "group": group.name, **_numbers(group)}
            if group.is_base:
                means = {name: found.value for name, found in group.scores.items()}
                table.append({**shared, **means})
            for run in group.runs:
                summary = run.record.summary
                costs = {n: summary.get(n) for n in (*COSTS, "train_seconds") if n in summary}
                own = {n: values.get(run.name) for n, values in comparison.differences.items()}
                told = {"run": run.name, "seed": run.seed, "status": run.status, "loss": run.loss}
                costs.setdefault("adapter_bytes", group.facts.get("adapter_bytes"))
                table.append({**shared, **run.scores, **told, **costs, **own})
    for run in comparison.left:
        table.append({"run": run.name, "seed": run.seed, "status": run.status})
    text = io.StringIO()
    writer = csv.DictWriter(text, heads, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as plain values, without the answers."""
    return {
        "title": comparison.title,
        "notes": comparison.notes,
        "sets": [
            {
                "base_model": one.base_model,
                "data": one.data,
                "rows": one.rows,
                "tokens": one.tokens,
                "precision": one.precision,
                "conclusions": one.conclusions,
                "groups": [_group(group) for group in one.groups],
                "differences": [
                    {"group": a, "other": b, "loss": _estimate(found)} for a, b, found in one.pairs
                ],
            }
            for one in comparison.sets
        ],
        "not_evaluated": [{"run": run.name, "status": run.status} for run in comparison.left],
        "options_that_differ": comparison.differences,
    }


def answer_lines(comparison: Comparison) -> Iterator[str]:
    """Yield a line of JSON for each prompt: the right answer, and that of every run."""
    for i, one in enumerate(comparison.sets, 1):
        for question, reference in enumerate(one.references):
            answers = {name: text for text, names in answers_to(one, question) for name in names}
            prompt = one.questions[question]
            line = {"set": i, "prompt": prompt, "reference": reference, "answers": answers}
            yield json.dumps(line, ensure_ascii=False)


def _group_lines(one: ComparedSet) -> list[str]:
    heads = ["group", "loss", "to the best", "to the base", "seed spread", *one.metrics]
    has_general = any("general_text" in group.scores for group in one.groups)
    heads += ["general text"] * has_general
    heads += ["parameters", "adapter", "peak memory", "tokens/s"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for group in one.groups:
        loss, spread = group.scores["loss"], group.seed_spread["loss"]
        cells = [group.name, f"{loss.value:.4f} ({loss.low:.3f} to {loss.high:.3f})"]
        best = "" if group.is_base else "best"
        cells += [_told(group.to_best.get("loss")) or best, _told(group.to_base.get("loss"))]
        cells.append("" if spread is None else f"{spread:.4f}")
        cells += [f"{100 * group.scores[name].value:.1f} %" for name in one.metrics]
        if has_general:
            general, change = group.scores["general_text"], group.to_base.get("general_text")
            cells.append(
                f"{general.value:.4f} {'' if change is None else f'({change.value:+.4f})'}"
            )
        parameters, speed = (group.facts.get(n) for n in ("trainable_parameters", COSTS[-1]))
        cells += ["" if parameters is None else f"{parameters:,.0f}"]
        cells += [size(group.facts.get(name)) or "" for name in COSTS[1:3]]
        cells += ["" if speed is None else f"{speed:,.0f}"]
        lines.append(f"| {' | '.join(map(_md, cells))} |")
    return lines


def _pair_lines(one: ComparedSet) -> list[str]:
    beyond = [(a, b, d) for a, b, d in one.pairs if d.is_beyond_noise]
    lines = [f"{len(beyond)} of {len(one.pairs)} pairs of groups differ beyond noise.", ""]
    if beyond:
        lines += ["| lower loss | higher loss | difference |", "|---|---|---|"]
    for a, b, found in sorted(beyond, key=lambda p: -abs(p[2].value))[:MOST_PAIRS]:
        lines.append(f"| {_md(a)} | {_md(b)} | {_told(found)} |")
    return [*lines, ""]


def _told(found: Estimate | None) -> str:
    if found is None:
        return ""
    noise = "" if found.is_beyond_noise else "within noise: "
    return f"{noise}{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


def _numbers(group: GroupResult) -> dict[str, Any]:
    loss = group.scores["loss"]
    found: dict[str, Any] = {"group_loss": loss.value, "group_low": loss.low}
    found |= {"group_high": loss.high, "seed_spread": group.seed_spread["loss"]}
    for name, difference in (("base", group.to_base), ("best", group.to_best)):
        if (d := difference.get("loss")) is not None:
            found |= {f"to_{name}": d.value, f"to_{name}_low": d.low}
            found |= {f"to_{name}_high": d.high, f"to_{name}_p": d.p}
    return found


def _group(group: GroupResult) -> dict[str, Any]:
    return {
        "name": group.name,
        "is_base": group.is_base,
        "options": group.options,
        "runs": [
            {"name": r.name, "seed": r.seed, "status": r.status, "loss": r.loss, "scores": r.scores}
            for r in group.runs
        ],
        "scores": {name: _estimate(found) for name, found in group.scores.items()},
        "seed_spread": group.seed_spread,
        "to_base": {name: _estimate(found) for name, found in group.to_base.items()},
        "to_best": {name: _estimate(found) for name, found in group.to_best.items()},
        **group.facts,
    }


def _estimate(found: Estimate) -> dict[str, Any]:
    told = {"value": found.value, "low": found.low, "high": found.high}
    if math.isfinite(found.p):
        told |= {"corrected_p": found.p, "beyond_noise": found.is_beyond_noise}
    return {**told, "with_seeds": found.with_seeds}


def _md(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
