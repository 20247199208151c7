"""How each part of a step is computed, for the table at the start of a run."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from peft_lightning.hidden_cache.cache import adapted_depth
from peft_lightning.training.precision import precision_rows


def path_of(model: nn.Module, parameter: str) -> str:
    """Return how the layer that holds ``parameter`` is computed; "" if it does not say so."""
    names = parameter.split(".")
    for end in range(len(names) - 1, 0, -1):
        module = model.get_submodule(".".join(names[:end]))
        if isinstance(path := getattr(module, "path", None), str):
            return path
    return ""


def compute_report(module: Any) -> dict[str, str]:
    """Return how each part of a step is computed that can be computed in several ways.

    Args:
        module: A ``CausalLMModule`` whose model is built, with or without a trainer; all processes
            of a sharded one must call this.
    """
    rows = {**precision_rows(module), **module.report.rows, "loss": module.loss_path()}
    count = getattr(module.adapter, "count_layers", None)
    if count is not None and (layers := count(module.model)):
        rows["updates"] = layers
    if depth := adapted_depth(module.model, module.adapter):
        what = "read from disk" if module.cache_hidden_states else "no graph, nothing kept"
        rows[f"layers below {depth}"] = what
    return rows


# how the parts of a model that the kernels know are computed; everything else is worth a line
_AS_EXPECTED = re.compile(
    r"\w+ fused \(\d+\)|each sequence alone, on \w+|flash kernel over sequences|compiled kernels"
    r"|labelled tokens, in chunks"
)


def unexpected(rows: dict[str, str]) -> dict[str, str]:
    """Return the rows of a report that a user may want to act on."""
    return {name: how for name, how in rows.items() if not _AS_EXPECTED.fullmatch(how)}


def as_table(rows: dict[str, str]) -> str:
    """Return a report as a table of one line each."""
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {how}" for name, how in rows.items())
