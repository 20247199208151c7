"""What libraries say on every run and nobody can act on, left out."""

from __future__ import annotations

import logging
import re
import warnings
from typing import Any

import transformers

INFO = "|".join(
    [
        r"litlogger|litmodels",  # advertisements
        r"^(GPU|TPU|HPU) available",
        r"^Seed set to",
        r"to estimate number of stepping batches",
        r"Automatic Mixed Precision \(AMP\)",  # the start of a run names the precision
        r"^Restored all states|^Loaded model weights",  # "Restoring states from ..." comes before
        r"^LOCAL_RANK: |^Initializing distributed|distributed_backend=|^-{20,}$",
        r"^`Trainer\.fit` stopped: `max_(steps|epochs)=",  # the end of a run says how far it came
        r"^`Trainer\((limit|overfit|val_check)\w*=1(\.0)?\)` was configured",
        r"override existing callbacks passed to Trainer",
    ]
)
WARNINGS = (
    "does not have many workers",
    "Checkpoint directory .* exists",
    "The dirpath has changed from",  # a checkpoint of another folder; what counts is restored
    "LeafSpec",
    "smaller than the logging interval",
    "in eval mode at the start of training",  # the frozen base, on purpose
    r"It is recommended to use `self\.log\(.*sync_dist=True",  # the means are over all processes
    "callbacks used to create the checkpoint need to be provided",
)


def leave_out_chatter() -> None:
    """Filter what Lightning and transformers write, and shorten their warnings to a line each."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_says_something)
    for name in ("lightning.fabric.utilities.seed", "lightning.fabric.utilities.distributed"):
        logging.getLogger(name).addFilter(_says_something)
    for message in WARNINGS:
        warnings.filterwarnings("ignore", f".*{message}")
    warnings.formatwarning = _one_line
    transformers.utils.logging.disable_progress_bar()


def _says_something(record: logging.LogRecord) -> bool:
    lines = [line.strip() for line in record.getMessage().splitlines() if line.strip()]
    return not lines or not all(re.search(INFO, line) for line in lines)


def _one_line(message: Any, category: Any, *args: Any, **kwargs: Any) -> str:
    return f"warning: {' '.join(str(message).split())}\n"
