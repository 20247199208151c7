"""General text as rows to evaluate on: what an adapter must not make its base forget."""

from __future__ import annotations

from typing import Any

import numpy as np

from peft_lightning.data import PromptFormat
from peft_lightning.experiments.compare.validation_rows import IGNORED, ValidationRows
from peft_lightning.training.general_text import LONGEST, general_texts, passage_rows


def general_rows(tokenizer: Any, layout: str, positions: int | None) -> ValidationRows:
    """Return the passages that come with the package, each a row.

    Args:
        tokenizer: The model's.
        layout: flat or padded, as the runs were trained.
        positions: The longest row that the model takes; None for any.
    """
    sequences, of_passage = [], []
    for i, text in enumerate(general_texts()):
        for row in passage_rows(tokenizer, text, min(LONGEST, positions or LONGEST)):
            row["loss_weights"] = (row["labels"] != IGNORED).astype(np.float32)
            sequences.append(row)
            of_passage.append(i)
    return ValidationRows(
        "general text",
        sequences,
        np.array(of_passage),
        prompts=[None] * len(general_texts()),
        references=[""] * len(general_texts()),
        tokenizer=tokenizer,
        prompt_format=PromptFormat(),
        layout=layout,
    )
