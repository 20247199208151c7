"""The scores of ``predict``'s answers, where its rows have answers to compare with."""

from __future__ import annotations

import json
from typing import Any

from peft_lightning.inference.answer_text import reference_text
from peft_lightning.inference.stop_tokens import stop_token_ids
from peft_lightning.metrics import LIKELIHOOD, corpus_score, most_frequent_share, row_scores

DEFAULT = ("exact_match", "f1", "rougeL")


class ScoredPredictions:
    """Scores the answers of each adapter by the rows' own.

    The metrics are those of ``model.metrics``, or else exact match, F1 and ROUGE-L, and JSON match
    if all of the rows' answers are JSON objects or lists.

    Args:
        module: The ``CausalLMModule`` that has answered.
        data: The ``SFTDataModule`` with the rows.
        answers: As ``predict_step`` returns them.

    Attributes:
        of_rows: The scores of each answer by metric; empty without an answer to compare with.
    """

    def __init__(self, module: Any, data: Any, answers: list[dict[str, Any]]) -> None:
        self._answers = answers
        known = {a["index"] for a in answers if data.predict_references[a["index"]] is not None}
        self._own = [n for n, answer in enumerate(answers) if answer["index"] in known]
        self._references: dict[int, str] = {}
        if self._own:
            ends = stop_token_ids(module.model, data.tokenizer)
            self._references = {
                i: reference_text(data.tokenizer, data.predict_references[i], ends) for i in known
            }
        self._asked = module.answer_options.metrics
        self._names = [name for name in self._asked if name != LIKELIHOOD]
        if not self._asked:
            self._names = list(DEFAULT)
            if self._own and all(map(_is_json, self._references.values())):
                self._names.insert(1, "json_match")
        self.of_rows: list[dict[str, float]] = [{} for _ in answers]
        texts, references = self._texts(self._own)
        for name in self._names:
            scores = row_scores(name, texts, references)
            for n, score in zip(self._own, scores, strict=True):
                self.of_rows[n][name] = score

    def _texts(self, chosen: list[int]) -> tuple[list[str], list[str]]:
        answers = [self._answers[n] for n in chosen]
        return [a["text"] for a in answers], [self._references[a["index"]] for a in answers]

    def table(self) -> str:
        """Return a line for each metric, with a column for each adapter; "" without references."""
        if not self._own:
            return ""
        names = list(dict.fromkeys(self._answers[n].get("adapter") for n in self._own))
        by = {
            name: [n for n in self._own if self._answers[n].get("adapter") == name]
            for name in names
        }
        rows = [["", *map(str, names)]] if len(names) > 1 else []
        for metric in self._names:
            values = [corpus_score(metric, *self._texts(by[name])) for name in names]
            rows.append([metric, *(f"{value:.3f}" for value in values)])
        frequent = [most_frequent_share(self._texts(by[name])[0]) for name in names]
        rows.append(["most frequent answer", *(f"{share:.3f}" for _, share in frequent)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        asked = len({answer["index"] for answer in self._answers})
        lines = [f"compared with the answers that {len(self._references)} of {asked} rows have:"]
        for first, *rest in rows:
            cells = (c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))
            lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
        for name, (text, share) in zip(names, frequent, strict=True):
            shown = json.dumps(text if len(text) <= 60 else f"{text[:57]}...", ensure_ascii=False)
            of = f" of {name}" if len(names) > 1 else ""
            lines.append(f"the most frequent answer{of}, {share:.1%}: {shown}")
        if LIKELIHOOD in self._asked:
            lines.append(f"{LIKELIHOOD} is computed by validate and test")
        return "\n".join(lines)


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False
