"""Compares runs: evaluates what can be evaluated, and says what follows and what cannot."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from peft_lightning.experiments.compare.compared_set import SetToCompare
from peft_lightning.experiments.compare.evaluate import Evaluation
from peft_lightning.experiments.compare.evaluated_model import EvaluationOptions
from peft_lightning.experiments.compare.evaluation_tasks import Evaluated
from peft_lightning.experiments.compare.groups import Group, differences, groups_of, short_names
from peft_lightning.experiments.compare.questions import (
    Questions,
    questions_of_file,
    questions_of_rows,
)
from peft_lightning.experiments.compare.runs import Run, find_runs
from peft_lightning.experiments.compare.validation_rows import RowReader, ValidationRows
from peft_lightning.messages import UserError
from peft_lightning.metrics import LIKELIHOOD, check_metrics
from peft_lightning.reports.comparison import ComparedSet, Comparison, RunResult

SAME_LOSS = 0.02  # relative; a larger difference to what the run has logged is said


def compare_runs(
    folders: Sequence[str | Path],
    *,
    val: str | None = None,
    rows: int | None = None,
    prompts: str | None = None,
    answers: int = 50,
    metrics: Sequence[str] = (),
    options: EvaluationOptions = EvaluationOptions(),  # noqa: B008  (frozen)
) -> Comparison:
    """Evaluate runs and the base, and compare them.

    Args:
        folders: Folders of runs, or with runs below them.
        val: Rows to evaluate on in place of the runs' own validation rows.
        rows: Largest number of rows; None for all.
        prompts: A file of prompts that every run answers; None for the first validation rows.
        answers: Number of prompts that are answered; 0 for none.
        metrics: Names of scores of the answers.
        options: How the models are evaluated.

    Raises:
        UserError: If there is no run, a metric is not known, or no run can be evaluated.
    """
    check_metrics(metrics)
    if LIKELIHOOD in metrics:
        raise UserError(f"{LIKELIHOOD} is no score of answers: runs log it, by model.metrics")
    for name, number, least in (("answers", answers, 0), ("rows", rows, 1)):
        if number is not None and number < least:
            raise UserError(f"{name} must be at least {least}, got {number}")
    if metrics and not answers:
        raise UserError(f"--metrics {', '.join(metrics)} scores answers, and --answers is 0")
    runs = find_runs(folders)
    left = [run for run in runs if run.problem]
    reader, rows_of = RowReader(val, rows, options.trust_remote_code), {}
    for run in [run for run in runs if not run.problem]:
        try:
            rows_of[run.name] = reader.read(run)
        except (UserError, FileNotFoundError) as error:
            left.append(replace(run, problem=str(error)))
    if not rows_of:
        raise UserError(f"no run can be evaluated: {left[0].name}: {left[0].problem}")
    sets: dict[str, list[Run]] = {}
    for run in runs:
        if run.name in rows_of:
            sets.setdefault(_set_of(run, rows_of[run.name]), []).append(run)
    compared, notes = [], _repeated([r for r in runs if r.name in rows_of])
    for members in sets.values():
        asked = _questions(rows_of[members[0].name], prompts, answers, metrics)
        evaluation = Evaluation(members, rows_of, asked, options)
        found = evaluation.run()
        left += [replace(r, problem=_problem(found[r.name])) for r in members if _bad(found, r)]
        if not (good := [run for run in members if not _bad(found, run)]):
            continue
        to_compare = SetToCompare(
            _groups(runs, good), found, rows_of[good[0].name], asked, metrics, evaluation.precision
        )
        compared.append(to_compare.compared())
        if val is None and rows is None:
            notes += _otherwise(good, found)
    if not compared:
        raise UserError(f"no run could be evaluated: {left[0].name}: {left[0].problem}")
    if len(compared) > 1:
        notes.insert(0, _why_apart(compared))
    differ = differences(runs) if len(runs) > 1 else {}
    short = short_names(differ)
    return Comparison(
        f"Comparison of {len(runs)} runs" if len(runs) > 1 else f"{runs[0].name} and its base",
        compared,
        [RunResult(run.name, run.record, run.status, run.seed) for run in left],
        {short[name]: values for name, values in differ.items()},
        notes,
    )


def _set_of(run: Run, rows: ValidationRows) -> str:
    """Return what runs that can be compared have in common: their base and their rows."""
    model = run.section("model")
    base = run.facts.get("base_fingerprint") or run.base_model
    options = [model.get(name) for name in ("quantization", "attn_implementation")]
    return json.dumps([base, options, rows.hash], sort_keys=True, default=str)


def _questions(
    rows: ValidationRows, prompts: str | None, answers: int, metrics: Sequence[str]
) -> Questions:
    if not answers:
        return Questions()
    if prompts is not None:
        asked = questions_of_file(prompts, rows.prompt_format, answers)
    else:
        asked = questions_of_rows(rows, answers)
    if metrics and not any(reference is not None for reference in asked.references):
        raise UserError(
            f"--metrics {', '.join(metrics)} needs prompts with their right answers, and "
            f"{asked.name or rows.name} has none"
        )
    return asked


def _groups(all_runs: Sequence[Run], good: Sequence[Run]) -> list[Group]:
    """Return the groups of runs that were evaluated, named by what differs among all runs."""
    names = {run.name for run in good}
    own = [run for run in all_runs if run.name in names]
    return groups_of(own)


def _bad(found: dict[str | None, Evaluated], run: Run) -> bool:
    return bool(_problem(found[run.name]))


def _problem(evaluated: Evaluated) -> str:
    """Return why a run has no losses that can be compared; "" if it has."""
    if evaluated.problem or evaluated.losses is None:
        return evaluated.problem or "it could not be evaluated"
    if not math.isfinite(evaluated.losses.mean):
        return f"its loss is {evaluated.losses.mean}: training has diverged"
    return ""


def _repeated(runs: Sequence[Run]) -> list[str]:
    """Return a note for each seed that several runs of a group have."""
    notes = []
    for group in groups_of(runs):
        seeds = [run.seed for run in group.runs]
        for seed in dict.fromkeys(s for s in seeds if s is not None and seeds.count(s) > 1):
            same = [run.name for run in group.runs if run.seed == seed]
            alike = f"have seed {seed} and the same options, so they count as one run"
            notes.append(f"{' and '.join(same)} {alike}.")
    return notes


def _otherwise(runs: Sequence[Run], found: dict[str | None, Evaluated]) -> list[str]:
    """Return a note for each run that has another loss here than it has logged."""
    notes = []
    for run in runs:
        own, logged = found[run.name].losses, run.record.summary.get("best_val_loss")
        is_best = run.checkpoint == run.record.best_checkpoint
        if own is None or not is_best or not isinstance(logged, int | float):
            continue
        if abs(own.mean - logged) > SAME_LOSS * abs(logged):
            notes.append(
                f"{run.name} has a loss of {own.mean:.4g} here and has logged {logged:.4g}: its "
                "data have changed since, or it was trained with a loss of its own."
            )
    return notes


def _why_apart(compared: Sequence[ComparedSet]) -> str:
    bases = {one.base_model for one in compared}
    rows = {(one.data, one.rows, one.tokens) for one in compared}
    reasons = ["have different base models"] if len(bases) > 1 else []
    if len(rows) > 1 or not reasons:
        reasons.append("were validated on different rows or tokens")
    return (
        f"The runs {' and '.join(reasons)}: a loss per token can be compared within each of the "
        f"{len(compared)} sets below, and not between them. --val FILE evaluates all on the same "
        "rows."
    )
