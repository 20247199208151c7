"""A plan as lines of text, and as JSON."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from peft_lightning.experiments.plan.advice import Advice, Variant
from peft_lightning.experiments.plan.facts import RowFacts
from peft_lightning.experiments.plan.plan import Plan
from peft_lightning.experiments.plan.steps import StepFacts
from peft_lightning.process.progress_format import clock


def size(count: float) -> str:
    """Return bytes as 1.23 GiB, 45.6 MiB or 789 KiB."""
    for unit, each in (("GiB", 2**30), ("MiB", 2**20)):
        if abs(count) >= each:
            return (
                f"{count / each:.3g} {unit}"
                if count < 1000 * each
                else f"{count / each:,.0f} {unit}"
            )
    return f"{count / 2**10:.0f} KiB"


def plan_text(plan: Plan) -> str:
    """Return a plan as lines, each with its subject in front."""
    parameters, disk = plan.parameters, plan.disk
    how = "measured here" if plan.is_measured else "by arithmetic"
    base = (
        Path(plan.base_model).name
        if plan.base_model.startswith(("/", "~", "."))
        else plan.base_model
    )
    lines = [
        ("run", f"{parameters.method} on {base}, in {plan.folder}; nothing is written there"),
        *_rows("train", plan.train),
        *_rows("val", plan.val),
        ("steps", _steps(plan.steps)),
        (
            "trained",
            f"{parameters.trainable:,} of {parameters.total:,} parameters ({parameters.share:.4%})"
            f", base in {parameters.base_dtype}",
        ),
        (
            "disk",
            f"{size(disk.total)}: {disk.checkpoints} checkpoints of {size(disk.checkpoint)} each"
            f" (the trained weights {size(disk.adapter)}), token cache {size(disk.token_cache)}"
            + (f", hidden states {size(disk.hidden_cache)}" if disk.hidden_cache else "")
            + f", logs about {size(disk.logs)}",
        ),
        ("memory", f"{size(plan.peak_bytes)} at the peak on {plan.device}, {how}"),
        ("time", f"{_time(plan)}, {how}"),
        *(("warning", text) for text in plan.warnings),
        *(("note", text) for text in plan.notes),
    ]
    return "\n".join(f"{name:<8} {text}" for name, text in lines)


def _rows(name: str, rows: RowFacts | None) -> list[tuple[str, str]]:
    if rows is None:
        what = "rows of a data module of your own: not counted" if name == "train" else "no rows"
        return [(name, what)]
    share = rows.loss_tokens / max(1, rows.tokens)
    return [
        (
            name,
            f"{rows.rows:,} rows, {rows.tokens:,} tokens, {rows.loss_tokens:,} of them in the loss "
            f"({share:.1%}), the longest row {rows.longest_row:,}; {rows.left_out:,} rows left out,"
            f" {rows.cut:,} cut"
            + (
                f" ({rows.longest_whole:,} is the longest whole)"
                if rows.left_out + rows.cut
                else ""
            ),
        )
    ]


def _steps(steps: StepFacts) -> str:
    if not math.isfinite(steps.steps):
        return "as many as trainer.max_time allows: nothing else limits the run"
    tokens = "" if steps.step_tokens is None else f" of {steps.step_tokens:,.0f} tokens on average"
    of = f"{steps.processes} processes x " if steps.processes > 1 else ""
    batches = f"{of}{steps.accumulate} batches" if steps.accumulate > 1 or of else "1 batch"
    epochs = f"{steps.epochs:,.3g} epochs" if math.isfinite(steps.epochs) else "epochs without end"
    largest = "" if steps.largest_batch is None else f", the largest of {steps.largest_batch:,}"
    return (
        f"{steps.steps:,.0f} in {epochs},{tokens} ({batches}{largest}); "
        f"{steps.validations} validations of {steps.validation_batches} batches"
    )


def _time(plan: Plan) -> str:
    seconds = plan.seconds
    rate = (
        "" if seconds.tokens_per_second is None else f", {seconds.tokens_per_second:,.0f} tokens/s"
    )
    parts = [
        f"start {clock(seconds.start)}",
        f"steps {clock(seconds.training)} ({seconds.step:.3g} s each{rate})",
    ]
    parts += [f"validation {clock(seconds.validation)}"] if seconds.validation else []
    parts += [f"checkpoints and end {clock(seconds.saving)}"] if seconds.saving else []
    return f"{clock(seconds.total)}: {', '.join(parts)}"


def advice_text(advice: Advice) -> str:
    """Return what makes a run fit, the cheapest change first."""
    if advice.now.peak_bytes <= advice.limit:
        return f"it fits {size(advice.limit)} as it is"
    lines = [f"to fit {size(advice.limit)}, each change alone, the cheapest first:"]
    lines += [_variant(v, advice) for v in advice.single] or ["  there is none"]
    if advice.best is not None:
        how = "measured" if advice.best.is_measured else "predicted"
        lines += [
            f"the cheapest set that fits, {how}: {size(advice.best.peak_bytes)}, "
            f"{clock(advice.best.seconds)}",
            f"  {shlex.join(advice.best.options)}",
        ]
    else:
        how = "measured" if advice.smallest.is_measured else "predicted"
        lines += [
            f"nothing fits {size(advice.limit)}; the least that can be reached is {how} as "
            f"{size(advice.smallest.peak_bytes)}, {clock(advice.smallest.seconds)}:",
            f"  {shlex.join(advice.smallest.options)}",
        ]
    return "\n".join(lines)


def _variant(variant: Variant, advice: Advice) -> str:
    change = variant.changes[0]
    fits = "fits" if variant.peak_bytes <= advice.limit else "does not fit"
    return (
        f"  {size(variant.peak_bytes):>9}  {clock(variant.seconds):>7}  {fits:<12}  "
        f"{shlex.join(change.options)}  ({change.effect})"
    )


def advice_json(advice: Advice) -> dict[str, object]:
    """Return the advice as plain values."""

    def plain(variant: Variant | None) -> dict[str, object] | None:
        if variant is None:
            return None
        return {
            "options": variant.options,
            "effects": [change.effect for change in variant.changes],
            "peak_bytes": round(variant.peak_bytes),
            "seconds": variant.seconds,
            "is_measured": variant.is_measured,
            "fits": variant.peak_bytes <= advice.limit,
        }

    return {
        "limit_bytes": advice.limit,
        "now": plain(advice.now),
        "single": [plain(variant) for variant in advice.single],
        "best": plain(advice.best),
        "smallest": plain(advice.smallest),
    }
