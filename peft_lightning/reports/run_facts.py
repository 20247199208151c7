"""What a run knows at its start and its other files do not say: ``report.json`` in its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peft_lightning.data.tokens.marked_tokens import MarkedRow, MarkedToken
from peft_lightning.files import atomic_text

FACTS = "report.json"


@dataclass(frozen=True)
class RunFacts:
    """What the page of a run shows from its start on.

    Args:
        method: The adapter's ``peft_type``.
        base_model: The base, as the user named it.
        total_steps: Optimizer steps of the whole run; None if nothing says how many.
        total_parameters: Parameters of the model, the adapter's included.
        trained: The trained parameters by kind of module: pattern, tensors, parameters and bytes.
        options: What the run was configured with, nested, without secrets.
        rows: Rows of training.
    """

    method: str = ""
    base_model: str = ""
    total_steps: int | None = None
    total_parameters: int = 0
    trained: Sequence[tuple[str, int, int, int]] = ()
    options: dict[str, Any] = field(default_factory=dict)
    rows: Sequence[MarkedRow] = ()

    def write(self, folder: Path) -> None:
        """Write them into the run's folder."""
        found = asdict(self)
        found["rows"] = [
            {
                "source": r.source,
                "tokens": [[t.text, t.id, t.weight, t.is_special] for t in r.tokens],
            }
            for r in self.rows
        ]
        atomic_text(folder / FACTS, json.dumps(found, ensure_ascii=False) + "\n")


def read_facts(folder: Path) -> RunFacts:
    """Return the facts of a run; those of a run that has left none, or damaged ones, are empty."""
    try:
        found = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        rows = [
            MarkedRow(row["source"], [MarkedToken(*token) for token in row["tokens"]])
            for row in found.pop("rows")
        ]
        return RunFacts(**{**found, "trained": [tuple(g) for g in found["trained"]], "rows": rows})
    except (OSError, ValueError, KeyError, TypeError):
        return RunFacts()
