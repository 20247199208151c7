"""Answers to rows with their scores: what is logged of them, and the file that keeps each row."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from peft_lightning.data.answer_rows import AnswerRow
from peft_lightning.files import atomic_text
from peft_lightning.metrics import LIKELIHOOD, corpus_score, most_frequent_share, row_scores
from peft_lightning.training.answer_options import AnswerOptions


class ScoredAnswers:
    """The answers of a validation or a test.

    Args:
        options: Which metrics there are.
        rows: The rows.
        references: The texts of their answers.
        answers: Of each row the generated text as "answer" and the likeliest label as "label", as
            far as the metrics need them.
    """

    def __init__(
        self,
        options: AnswerOptions,
        rows: list[AnswerRow],
        references: list[str],
        answers: list[dict[str, str]],
    ) -> None:
        self._options, self._rows = options, rows
        self._references, self._answers = references, answers
        self.scores: dict[str, list[float]] = {}
        for name in options.metrics:
            if name == LIKELIHOOD:
                pairs = zip(answers, references, strict=True)
                self.scores[name] = [float(row["label"] == reference) for row, reference in pairs]
            else:
                self.scores[name] = row_scores(name, [r["answer"] for r in answers], references)

    def values(self, source: str | None = None) -> dict[str, float]:
        """Return the score of each metric, and the share of the most frequent answer.

        Args:
            source: A source by its name in metrics; None for all rows.
        """
        own = [i for i, row in enumerate(self._rows) if source in (None, row.source)]
        references = [self._references[i] for i in own]
        texts = [self._answers[i].get("answer", "") for i in own]
        values = {
            name: math.fsum(self.scores[name][i] for i in own) / len(own)
            if name == LIKELIHOOD
            else corpus_score(name, texts, references)
            for name in self._options.metrics
        }
        if self._options.of_texts:
            values["most_frequent_answer"] = most_frequent_share(texts)[1]
        if self._options.of_labels:
            labels = [self._answers[i]["label"] for i in own]
            values["most_frequent_label"] = most_frequent_share(labels)[1]
        return values

    def log(self, module: Any, stage: str) -> None:
        """Log the values of all rows, and of those of each source with a name.

        Args:
            module: The ``LightningModule`` that is evaluated.
            stage: val or test, with which the names begin.
        """
        for source in dict.fromkeys([None, *(row.source or None for row in self._rows)]):
            end = f"/{source}" if source else ""
            for name, value in self.values(source).items():
                module.log(f"{stage}/{name}{end}", value, batch_size=1)

    def write(self, file: Path, tokenizer: Any, step: int) -> None:
        """Write each row, with its place, prompt, reference, answer and scores, as a line of JSON.

        Args:
            file: Is replaced as a whole.
            tokenizer: That of the prompts, which are shown with their special tokens.
            step: The optimizer step of the weights that answered.
        """
        lines = []
        for i, row in enumerate(self._rows):
            facts: dict[str, Any] = {"step": step, "file": row.file, "row": row.number}
            if row.source:
                facts["source"] = row.source
            facts["prompt"] = tokenizer.decode(row.prompt)
            facts |= {"reference": self._references[i], **self._answers[i]}
            facts["scores"] = {name: scores[i] for name, scores in self.scores.items()}
            lines.append(json.dumps(facts, ensure_ascii=False) + "\n")
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_text(file, "".join(lines))
