"""Findings about answers: empty, short, repeated, or few that are labels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from peft_lightning.data.audit.corpus import Corpus
from peft_lightning.data.audit.findings import AuditFinding
from peft_lightning.data.audit.row_notes import MOST_EXAMPLES

MOST_LABELS = 100  # distinct answers; more are no labels
ROWS_PER_LABEL = 10  # on average, at least
IMBALANCE = 10  # times as many rows of the most frequent label as of the rarest
SAME_SHARE = 0.05  # of the rows with the same answer is worth a word
SAME_ROWS = 10  # and at least so many
SHORT = 2  # tokens, special ones aside


def answer_findings(corpus: Corpus) -> list[AuditFinding]:
    """Return the findings about the answers of the rows that are used."""
    lengths, used = corpus.array("answer_lengths"), corpus.is_used
    hashes = corpus.array("answer_hashes")
    values, counts = _distinct(hashes[used])
    labels = is_labels(counts)
    found = [
        _finding(corpus, "answer that is empty", used & (lengths == 0)),
        _finding(corpus, "answer that repeats itself", corpus.array("loops") & used),
        _of_the_same_prompt(corpus),
    ]
    if labels and counts[0] >= IMBALANCE * counts[-1]:
        rare = used & (hashes == values[-1])
        most, least = (f"{_text(corpus, values[i])}: {counts[i]} rows" for i in (0, -1))
        detail = f"{most}, {least}"
        found.append(_finding(corpus, "unbalanced labels", rare, detail, is_note=True))
    if not labels:
        short = used & (lengths > 0) & (lengths <= SHORT)
        detail = f"at most {SHORT} tokens"
        found.append(_finding(corpus, "short answer", short, detail, is_note=True))
        for value, count in zip(values[:5], counts[:5], strict=True):
            if count >= max(SAME_ROWS, SAME_SHARE * used.sum()):
                detail = f"{_text(corpus, value)} in {count / used.sum():.1%} of the rows"
                found.append(_finding(corpus, "same answer", used & (hashes == value), detail))
    return [finding for finding in found if finding is not None]


def _of_the_same_prompt(corpus: Corpus) -> AuditFinding | None:
    """Return a finding about the rows whose prompt has another answer in another row."""
    prompts, answers = corpus.array("prompt_hashes"), corpus.array("answer_hashes")
    rows = np.flatnonzero(corpus.is_used & (prompts != 0))
    pairs = np.unique(np.stack([prompts[rows], answers[rows]], axis=1), axis=0)
    values, counts = np.unique(pairs[:, 0], return_counts=True)
    several = values[counts > 1]
    found = rows[np.isin(prompts[rows], several)]
    if not len(found):
        return None
    examples = []
    for prompt in dict.fromkeys(prompts[found].tolist()):
        first, *others = found[prompts[found] == prompt]
        other = next(i for i in others if answers[i] != answers[first])
        like = f"{int((counts[values == prompt])[0])} answers, another in {corpus.location(other)}"
        examples.append((corpus.location(int(first)), like))
        if len(examples) == MOST_EXAMPLES:
            break
    kind = "same prompt with different answers"
    return AuditFinding(kind, len(found), examples[0][0], examples[0][1], examples=examples)


def answer_counts(corpus: Corpus) -> dict[str, Any]:
    """Return the lengths of answers in tokens, how many are distinct, and labels if they are."""
    used = corpus.is_used
    lengths = np.sort(corpus.array("answer_lengths")[used])
    if not len(lengths):
        return {"distinct": 0}
    values, counts = _distinct(corpus.array("answer_hashes")[used])
    found: dict[str, Any] = {
        "min": int(lengths[0]),
        "median": int(lengths[len(lengths) // 2]),
        "max": int(lengths[-1]),
        "distinct": len(values),
    }
    if is_labels(counts):
        pairs = zip(values, counts.tolist(), strict=True)
        found["labels"] = {_text(corpus, value): count for value, count in pairs}
    return found


def is_labels(counts: NDArray[np.int64]) -> bool:
    """Whether answers are few distinct strings, such as the classes of a classification.

    Args:
        counts: Number of rows with each distinct answer.
    """
    return 1 < len(counts) <= MOST_LABELS and counts.sum() >= ROWS_PER_LABEL * len(counts)


def _distinct(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the distinct hashes and the number of each, the most frequent first."""
    values, counts = np.unique(hashes, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return values[order], counts[order]


def _text(corpus: Corpus, value: np.uint64) -> str:
    for source in corpus.sources:
        if int(value) in source.notes.answers:
            return source.notes.answers[int(value)]
    return f"answer {int(value):016x}"


def _finding(
    corpus: Corpus,
    kind: str,
    rows: NDArray[np.bool_],
    detail: str = "",
    is_note: bool = False,
) -> AuditFinding | None:
    places = np.flatnonzero(rows)
    if not len(places):
        return None
    return AuditFinding(kind, len(places), corpus.location(int(places[0])), detail, is_note)
