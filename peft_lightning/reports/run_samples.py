"""Answers to the sample prompts of a run: before training, now, and at each step between."""

from __future__ import annotations

import json
from typing import Any

from peft_lightning.reports.differences import marked_differences
from peft_lightning.reports.page import Html, details, escaped, paragraph
from peft_lightning.reports.run_record import RunRecord
from peft_lightning.reports.tables import table


def samples_block(record: RunRecord) -> Html | None:
    """Return the answers by prompt; None if the run has none."""
    by_prompt: dict[str, dict[int, str]] = {}  # a step that was made again counts once
    for line in record.samples:
        if {"step", "prompt", "prediction"} <= line.keys():
            answers = by_prompt.setdefault(_text(line["prompt"]), {})
            answers[int(line["step"])] = _text(line["prediction"])
    if not by_prompt:
        return None
    return Html("".join(_prompt(p, dict(sorted(a.items()))) for p, a in by_prompt.items()))


def _prompt(prompt: str, answers: dict[int, str]) -> Html:
    first, *_, last = [*answers, *answers]
    block = f"<h3>{escaped(prompt)}</h3>"
    if len(answers) == 1:
        return Html(block + _answer(_named(first), escaped(answers[first])))
    before, after = marked_differences(answers[first], answers[last])
    pair = _answer(_named(first), before) + _answer(_named(last), after)
    block += f"<div class=pair>{pair}</div>"
    if answers[first] == answers[last]:
        block += paragraph("Both are the same.")
    if len(answers) > 2:
        rows = [[step, text] for step, text in answers.items()]
        block += details(f"All {len(answers)} steps", table(["step", "answer"], rows))
    return Html(block)


def _named(step: int) -> str:
    return "Before training" if step == 0 else f"Step {step:,}"


def _answer(name: str, text: Html) -> str:
    return f"<div><h4>{escaped(name)}</h4><pre>{text or '<i>empty</i>'}</pre></div>"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
