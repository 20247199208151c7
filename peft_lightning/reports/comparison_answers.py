"""The same prompts answered by all runs: who agrees, who is right, in which words they differ."""

from __future__ import annotations

import re
from collections.abc import Sequence

from peft_lightning.reports.comparison import ComparedSet
from peft_lightning.reports.differences import marked_differences
from peft_lightning.reports.page import Html, code, escaped
from peft_lightning.reports.tables import Cell, table

LONGEST = 90  # characters of a prompt or an answer in a line of the table
MOST_NAMED = 6
_SPECIAL = re.compile(r"<\|?[\w/]+\|?>")
_ROLES = ("", "system", "user", "assistant", "model", "human")
SAME, DIFFERENT = "all agree", "runs disagree"


def answer_table(one: ComparedSet) -> Html:
    """Return a line for each prompt; opened, it shows every answer and whose it is."""
    columns = ["prompt", "right answer", "agreement", "right", "most frequent answer"]
    rows, opened = [], []
    bases = [group.name for group in one.groups if group.is_base]
    for i, question in enumerate(one.questions):
        answers, reference = answers_to(one, i), one.references[i]
        counted = [pair for pair in answers if pair[1] != bases]
        trained = sum(len(names) for _, names in counted)
        right = sum(len(n) for text, n in counted if text.strip() == (reference or "").strip())
        agree = SAME if len(counted) <= 1 else DIFFERENT
        most = max(counted, key=lambda pair: len(pair[1]), default=("", []))[0]
        rows.append(
            [
                Cell(_short(_last_turn(question)), question),
                None if reference is None else _short(reference),
                agree,
                None if reference is None else Cell(f"{right} of {trained}", right),
                _short(most),
            ]
        )
        opened.append(_answers(question, reference, answers))
    return table(columns, rows, opened=opened)


def answers_to(one: ComparedSet, question: int) -> list[tuple[str, list[str]]]:
    """Return the different answers to a prompt, each with the runs that gave it.

    That of the base is the last one, and stands for itself.
    """
    found: dict[str, list[str]] = {}
    for group in one.groups:
        for run in group.runs:
            if question < len(run.answers):
                found.setdefault(run.answers[question], []).append(run.name)
    answers = sorted(found.items(), key=lambda pair: -len(pair[1]))
    for group in one.groups:
        if group.is_base and question < len(group.answers):
            answers.append((group.answers[question], [group.name]))
    return answers


def disagreements(one: ComparedSet) -> int:
    """Return the number of prompts that not all runs answer alike."""
    count = 0
    for i in range(len(one.questions)):
        texts = {run.answers[i] for group in one.groups for run in group.runs if run.answers}
        count += len(texts) > 1
    return count


def _answers(
    question: str, reference: str | None, answers: Sequence[tuple[str, list[str]]]
) -> Html:
    """Return the prompt and its answers, the words marked that the right answer has not."""
    blocks: list[str] = [code(question)]
    if reference is not None:
        blocks.append(_answer(escaped(reference), "the right answer"))
    compared = reference if reference is not None else answers[0][0] if answers else ""
    for text, names in answers:
        _, shown = marked_differences(compared, text)
        is_right = reference is not None and text.strip() == reference.strip()
        blocks.append(_answer(shown, f"{named(names)}{': right' * is_right}"))
    return Html("".join(blocks))


def _answer(text: Html, names: str) -> Html:
    """Return an answer with whose it is below: side by side they would not fit a phone."""
    shown = text or escaped("(empty)")
    return Html(
        f"<p><span class=mono>{shown}</span><br><span class=note>{escaped(names)}</span></p>"
    )


def named(names: Sequence[str]) -> str:
    """Return the names of runs, the first ones of many."""
    if len(names) <= MOST_NAMED:
        return ", ".join(names)
    return f"{', '.join(names[: MOST_NAMED - 1])} and {len(names) - MOST_NAMED + 1} others"


def _last_turn(question: str) -> str:
    """Return the last line of a prompt that says something: no special token, no role's name."""
    lines = [_SPECIAL.sub(" ", line).strip() for line in question.splitlines()]
    said = [line for line in lines if line.strip(":").lower() not in _ROLES]
    return said[-1] if said else question


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"
