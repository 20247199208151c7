"""One set of a comparison: runs on one base and the same rows, from evaluation to sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peft_lightning.data.collate import flat_collate
from peft_lightning.experiments.compare.conclusions import conclusions, noise
from peft_lightning.experiments.compare.evaluation_tasks import Evaluated
from peft_lightning.experiments.compare.groups import Group
from peft_lightning.experiments.compare.questions import Questions
from peft_lightning.experiments.compare.runs import Run
from peft_lightning.experiments.compare.statistics import Scores, Statistics, compare_groups
from peft_lightning.experiments.compare.validation_rows import ValidationRows
from peft_lightning.experiments.compare.wording import LOSS, Measure
from peft_lightning.metrics import row_scores
from peft_lightning.reports.comparison import ComparedSet, GroupResult, RunResult
from peft_lightning.training.labelled_bytes import LabelledBytes

BASE = "base (untouched)"
ACCURACY = "token_accuracy"
GENERAL = "general_text"
FACTS = ("trainable_parameters", "peak_memory_bytes", "tokens_per_second", "train_seconds")


@dataclass(frozen=True)
class SetToCompare:
    """What was evaluated of runs that can be compared.

    Args:
        groups: Groups of runs that have losses.
        found: What the base, None, and each run make of the rows.
        rows: The rows.
        questions: What was answered.
        metrics: Names of the scores of the answers.
        precision: In which all were evaluated.
    """

    groups: list[Group]
    found: Mapping[str | None, Evaluated]
    rows: ValidationRows
    questions: Questions
    metrics: Sequence[str]
    precision: str

    def compared(self) -> ComparedSet:
        """Return the groups with their statistics, and what follows from them."""
        measures = self._measures()
        by_score = {name: self._statistics(name) for name in measures}
        of_loss = by_score["loss"]
        results = {group.name: self._group(group) for group in self.groups}
        parameters = {n: g.facts["trainable_parameters"] for n, g in results.items()}
        seeds = {g.name: len(self._units(g)) for g in self.groups}
        sentences = [*conclusions(of_loss, BASE, parameters), *noise(of_loss, seeds)]
        for name in self.metrics:
            of_score = conclusions(by_score[name], BASE, parameters, measures[name])
            sentences += [f"By {name}: {sentence}" for sentence in (of_score[0], of_score[-1])]
        if GENERAL in measures:
            forgotten = conclusions(by_score[GENERAL], BASE, parameters, measures[GENERAL])
            sentences += [f"Forgetting: {sentence}" for sentence in (forgotten[0], forgotten[-1])]
        results[BASE] = GroupResult(
            BASE,
            {},
            answers=self.found[None].answers,
            facts=dict.fromkeys((*FACTS, "adapter_bytes")),
        )
        results = {n: _with_statistics(g, by_score, measures) for n, g in results.items()}
        ranked = sorted(results.values(), key=lambda g: g.scores["loss"].value)
        names = [g.name for g in ranked]
        pairs = [
            (a, b, of_loss.differences[a, b]) for i, a in enumerate(names) for b in names[i + 1 :]
        ]
        losses = self.found[None].losses
        assert losses is not None
        return ComparedSet(
            self.groups[0].runs[0].base_model,
            self.rows.name,
            len(self.rows),
            float(losses.tokens.sum()),
            self.precision,
            sentences,
            ranked,
            pairs,
            self.questions.texts,
            self.questions.references,
            list(self.metrics),
            self._bytes(),
        )

    def _measures(self) -> dict[str, Measure]:
        """Return the scores by name, the loss first."""
        shares = {name: Measure(name, "points", False) for name in (ACCURACY, *self.metrics)}
        base = self.found[None].general
        general = {} if base is None else {GENERAL: Measure("loss on general text", LOSS.unit)}
        return {"loss": LOSS, **shares, **general}

    def _statistics(self, name: str) -> Statistics:
        groups = [Scores(BASE, self._values(None, name)[None], has_seed=False)]
        for group in self.groups:
            units = [
                np.mean([self._values(run.name, name) for run in unit], axis=0)
                for unit in self._units(group)
            ]
            groups.append(Scores(group.name, np.stack(units)))
        losses = self.found[None].losses
        assert losses is not None
        if name in ("loss", ACCURACY):
            return compare_groups(groups, losses.tokens, bounded=name == ACCURACY)
        if name == GENERAL:
            general = self.found[None].general
            assert general is not None
            return compare_groups(groups, general.tokens)
        return compare_groups(groups, np.ones(groups[0].sums.shape[1]), bounded=True)

    def _values(self, run: str | None, name: str) -> NDArray[np.float64]:
        """Return the sums or scores of a run's rows."""
        found = self.found[run]
        assert found.losses is not None
        if name == "loss":
            return found.losses.nll
        if name == ACCURACY:
            return found.losses.correct
        if name == GENERAL:
            assert found.general is not None
            return found.general.nll
        return np.asarray(self._row_scores(found.answers, name))

    def _row_scores(self, answers: Sequence[str], name: str) -> list[float]:
        known = [i for i, r in enumerate(self.questions.references) if r is not None]
        references = [str(self.questions.references[i]) for i in known]
        return row_scores(name, [answers[i] for i in known], references)

    def _units(self, group: Group) -> list[list[Run]]:
        """Return the runs of a group by seed: those of an equal seed count once."""
        units: dict[Any, list[Run]] = {}
        for run in group.runs:
            units.setdefault(run.name if run.seed is None else run.seed, []).append(run)
        return list(units.values())

    def _group(self, group: Group) -> GroupResult:
        runs = [self._run(run) for run in group.runs]
        facts = {name: _mean([r.record.summary.get(name) for r in runs]) for name in FACTS}
        facts["adapter_bytes"] = _mean([_bytes_of(run) for run in group.runs])
        return GroupResult(group.name, group.options, runs, facts=facts, answers=runs[0].answers)

    def _run(self, run: Run) -> RunResult:
        found = self.found[run.name]
        assert found.losses is not None
        scores = {name: float(np.mean(self._values(run.name, name))) for name in self.metrics}
        scores[ACCURACY] = float(found.losses.correct.sum() / found.losses.tokens.sum())
        scores |= {} if found.general is None else {GENERAL: found.general.mean}
        return RunResult(
            *(run.name, run.record, run.status, run.seed, found.losses.mean),
            *(scores, found.answers),
        )

    def _bytes(self) -> float | None:
        """Return the UTF-8 bytes of the text in the loss; None if the tokenizer does not tell."""
        count, total = LabelledBytes(self.rows.tokenizer), 0.0
        for sequence in self.rows.sequences:
            found = count.count(flat_collate([sequence]))
            if found is None:
                return None
            total += float(found[1])
        return total or None


def _with_statistics(
    group: GroupResult, by_score: Mapping[str, Statistics], measures: Mapping[str, Measure]
) -> GroupResult:
    """Return a group with its means, and its differences to the base and to the best."""
    name, best = group.name, {}
    for score, found in by_score.items():
        others = [other for other in found.means if other != BASE]
        best[score] = max(others, key=lambda o: measures[score].goodness(found.means[o].value))
    return replace(
        group,
        scores={score: found.means[name] for score, found in by_score.items()},
        to_compare={s: f.to_compare[name] for s, f in by_score.items() if name != BASE},
        seed_spread={score: found.seed_spread[name] for score, found in by_score.items()},
        to_base={
            score: found.differences[name, BASE]
            for score, found in by_score.items()
            if name != BASE
        },
        to_best={
            score: found.differences[name, best[score]]
            for score, found in by_score.items()
            if name != best[score]
        },
    )


def _mean(values: Sequence[Any]) -> float | None:
    known = [value for value in values if isinstance(value, int | float)]
    return sum(known) / len(known) if known else None


def _bytes_of(run: Run) -> int:
    assert run.checkpoint is not None
    return sum(file.stat().st_size for file in run.checkpoint.glob("*.safetensors"))
