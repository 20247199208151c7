"""The facts of a run that need no training: its rows and its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from peft_lightning.base_model.quantization import count_numbers
from peft_lightning.data.split import Split


@dataclass(frozen=True)
class RowFacts:
    """The rows of training or validation.

    Args:
        rows: Rows of the files that are used.
        tokens: Their tokens.
        loss_tokens: Those of them that are in the loss.
        longest_row: Tokens of the longest row.
        left_out: Rows of the files that are not used: too long, malformed, or without a label.
        cut: Rows that are truncated.
        longest_whole: Tokens of the longest row before anything is cut or left out.
        sources: The counts of each file, in words.
    """

    rows: int
    tokens: int
    loss_tokens: int
    longest_row: int
    left_out: int
    cut: int
    longest_whole: int
    sources: dict[str, str]


@dataclass(frozen=True)
class ParameterFacts:
    """What is trained.

    Args:
        method: The adapter's class.
        trainable: Trainable parameters.
        total: All parameters, those of the adapter included.
        base: Parameters of the base.
        base_dtype: Type of the base's weights.
        learning_rate: The highest of the run.
    """

    method: str
    trainable: int
    total: int
    base: int
    base_dtype: str
    learning_rate: float | None

    @property
    def share(self) -> float:
        """Trainable parameters among all, 0 to 1."""
        return self.trainable / max(1, self.total)


def row_facts(split: Split) -> RowFacts:
    """Return the facts of the rows of a split."""
    metas = [part.meta for part in split.parts]
    sizes = split.sizes
    return RowFacts(
        rows=sizes["rows"],
        tokens=sizes["tokens"],
        loss_tokens=sizes["loss_tokens"],
        longest_row=sizes["longest_row"],
        left_out=sum(p.meta["read"] - len(np.unique(p.records)) for p in split.parts),
        cut=sum(meta.get("num_truncated", 0) for meta in metas),
        longest_whole=max((meta.get("longest", 0) for meta in metas), default=0),
        sources={meta["source"]: meta["counts"] for meta in metas},
    )


def parameter_facts(module: Any, model: Any, learning_rate: float | None) -> ParameterFacts:
    """Return what is trained.

    Args:
        module: The ``CausalLMModule``.
        model: Its model with the adapter attached, perhaps on the meta device.
        learning_rate: The highest of the run.
    """
    parameters = list(model.parameters())
    other = [p for name, p in module.named_parameters() if not name.startswith("model.")]
    trainable = sum(p.numel() for p in [*parameters, *other] if p.requires_grad)
    total = sum(count_numbers(p) for p in [*parameters, *other])
    base = total if module.adapter.trains_base else total - trainable
    dtype = str(model.dtype).removeprefix("torch.")
    name = type(module.adapter).__name__
    return ParameterFacts(name, trainable, total, base, dtype, learning_rate)


def highest_rate(trainer: Any) -> float | None:
    """Return the highest learning rate of the optimizer's schedule; None where it has none."""
    rates = [g.get("initial_lr", g["lr"]) for o in trainer.optimizers for g in o.param_groups]
    return max((float(rate) for rate in rates if rate is not None), default=None)


def rows_of(splits: dict[str, Split]) -> tuple[RowFacts | None, RowFacts | None]:
    """Return the facts of the training and the validation rows, where there are any."""
    train, val = splits.get("train"), splits.get("val")
    return row_facts(train) if train else None, row_facts(val) if val else None
