"""A comparison of runs as data: what its page, its texts and its tables are written from."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log
from typing import Any

from peft_lightning.reports.run_record import RunRecord

LEVEL = 0.95  # of all intervals


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference of means, with its interval.

    Args:
        value: The estimate.
        low: Lower end of the 95 % interval.
        high: Upper end.
        p: Probability of so large a difference without one in truth, corrected for the number of
            comparisons; nan of a mean.
        with_seeds: Whether the interval contains the noise of the seeds, not of the rows alone.
    """

    value: float
    low: float
    high: float
    p: float = float("nan")
    with_seeds: bool = True

    @property
    def is_beyond_noise(self) -> bool:
        """Whether the difference is more than noise, all comparisons taken together."""
        return self.p < 1 - LEVEL

    @property
    def is_unclear(self) -> bool:
        """Whether it would be more than noise, were it the only comparison."""
        return not self.is_beyond_noise and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class RunResult:
    """A run in a comparison.

    Args:
        name: Its name among the compared.
        record: What its folder holds.
        status: How it ended, or why it could not be evaluated.
        seed: Its seed, if it has one.
        loss: Its mean loss on the validation rows in nats per token; None if not evaluated.
        scores: The mean of each metric over its answers.
        answers: Its answers to the questions of the comparison.
    """

    name: str
    record: RunRecord
    status: str
    seed: int | None = None
    loss: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class GroupResult:
    """Runs that differ only in their seed, or the untouched base.

    Args:
        name: Its name.
        options: What varies between the groups, and its values here.
        runs: Its runs; none of the base.
        scores: For each score, ``loss`` first, its mean with the interval.
        to_compare: The same with the intervals to compare groups by: without the difficulty of the
            rows, which all groups have in common. Empty for the base.
        seed_spread: For each score the standard deviation between seeds; None of one seed.
        to_base: For each score the difference to the base.
        to_best: For each score the difference to the best group.
        facts: trainable_parameters, adapter_bytes, peak_memory_bytes, tokens_per_second,
            train_seconds: means over its runs; None where a run does not tell.
        answers: Of its first run, or of the base.
    """

    name: str
    options: dict[str, Any]
    runs: list[RunResult] = field(default_factory=list)
    scores: dict[str, Estimate] = field(default_factory=dict)
    to_compare: dict[str, Estimate] = field(default_factory=dict)
    seed_spread: dict[str, float | None] = field(default_factory=dict)
    to_base: dict[str, Estimate] = field(default_factory=dict)
    to_best: dict[str, Estimate] = field(default_factory=dict)
    facts: dict[str, float | None] = field(default_factory=dict)
    answers: tuple[str, ...] = ()

    @property
    def is_base(self) -> bool:
        """Whether it is the untouched base."""
        return not self.runs


@dataclass(frozen=True)
class ComparedSet:
    """Groups that can be compared: on one base and the same validation rows.

    Args:
        base_model: The name of the base.
        data: The files of the rows.
        rows: Number of rows.
        tokens: Number of tokens in the loss.
        precision: In which all were evaluated.
        conclusions: What follows, in sentences; the most important one first.
        groups: The groups, the lowest loss first; the base is one of them.
        pairs: The difference of each pair of groups in the loss, each pair once.
        questions: The prompts that all have answered.
        references: Their right answers, where those are known.
        metrics: The names of the scores of the answers.
        bytes: UTF-8 bytes of the text in the loss; None if the tokenizer does not tell.
    """

    base_model: str
    data: str
    rows: int
    tokens: float
    precision: str
    conclusions: list[str]
    groups: list[GroupResult]
    pairs: list[tuple[str, str, Estimate]]
    questions: list[str] = field(default_factory=list)
    references: list[str | None] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)
    bytes: float | None = None

    def bits_per_byte(self, loss: float) -> float | None:
        """Return a loss in nats per token as bits per byte of text."""
        return loss * self.tokens / self.bytes / log(2) if self.bytes else None


@dataclass(frozen=True)
class Comparison:
    """A comparison of runs.

    Args:
        title: Its title.
        sets: The runs that can be compared, in sets that cannot be compared with each other.
        left: Runs that were not evaluated, with the reason in their status.
        differences: Options that differ between runs: the option, and its value by run.
        notes: What else a reader has to know.
    """

    title: str
    sets: list[ComparedSet]
    left: list[RunResult]
    differences: dict[str, dict[str, Any]]
    notes: list[str]
