"""Filters on the messages and warnings of libraries that come with every run."""

from __future__ import annotations

import logging
import re
import warnings

import transformers

from peft_lightning.messages import print_one_line_warnings

INFO = "|".join(
    [
        r"litlogger|litmodels",  # advertisements
        r"^(GPU|TPU|HPU) available",
        r"^(\[rank: \d+\] )?Seed set to",
        r"Child process with PID \d+ terminated",  # which has said why
        r"to estimate number of stepping batches",
        r"Automatic Mixed Precision \(AMP\)",  # the start of a run prints the precision
        r"^Restored all states|^Loaded model weights",  # "Restoring states from ..." comes before
        r"^LOCAL_RANK: |^Initializing distributed|distributed_backend=|^-{20,}$",
        r"^`Trainer\.fit` stopped: `max_(steps|epochs)=",  # the end of a run prints the steps
        r"^`Trainer\((limit|overfit|val_check)\w*=1(\.0)?\)` was configured",
        r"override existing callbacks passed to Trainer",
    ]
)
WARNINGS = (
    "does not have many workers",
    "Checkpoint directory .* exists",
    "The dirpath has changed from",  # a checkpoint of another folder
    "LeafSpec",
    "smaller than the logging interval",
    "in eval mode at the start of training",  # the frozen base, on purpose
    r"It is recommended to use `self\.log\(.*sync_dist=True",  # metrics are reduced
    "callbacks used to create the checkpoint need to be provided",
    "The `srun` command is available on your system but is not used",
    "Total length of .* across ranks is zero",  # a run without validation rows
)


def print_as_a_program() -> None:
    """Print each warning as one line, and nothing of transformers' progress."""
    print_one_line_warnings()
    transformers.utils.logging.disable_progress_bar()


def filter_logs() -> None:
    """Filter the messages and warnings of Lightning that come with every run."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_is_informative)
    for name in ("lightning.fabric.utilities.seed", "lightning.fabric.utilities.distributed"):
        logging.getLogger(name).addFilter(_is_informative)
    launcher = "lightning.fabric.strategies.launchers.subprocess_script"
    logging.getLogger(launcher).addFilter(_is_informative)
    for message in WARNINGS:
        warnings.filterwarnings("ignore", f".*{message}")


def _is_informative(record: logging.LogRecord) -> bool:
    lines = [line.strip() for line in record.getMessage().splitlines() if line.strip()]
    return not lines or not all(re.search(INFO, line) for line in lines)
