"""What Lightning refuses, in words that name the option and what would be right."""

from __future__ import annotations

import re
from collections.abc import Callable

from peft_lightning.messages import did_you_mean


def _interval(found: re.Match[str]) -> str:
    return (
        f"trainer.val_check_interval {found[1]} is more than the {found[2]} batches of an epoch: "
        f"give at most {found[2]}; with trainer.check_val_every_n_epoch null it counts the batches "
        "of all epochs"
    )


def _backend(found: re.Match[str]) -> str:
    return f"trainer.accelerator {found[1]}: there is none here; give auto or cpu"


def _metric(found: re.Match[str]) -> str:
    names = re.findall(r"`([^`]+)`", found[2])
    hint = did_you_mean(found[1].replace("_", "/", 1), names)
    return (
        f"EarlyStopping watches {found[1]}, which is not logged; there are {', '.join(names)}{hint}"
    )


_KNOWN: list[tuple[str, Callable[[re.Match[str]], str]]] = [
    (
        r"`val_check_interval` \((.+?)\) must be less than or equal to .*?batches \((\d+)\).*",
        _interval,
    ),
    (r"No supported (\w+) backend found!", _backend),
    (
        r"Early stopping conditioned on metric `(.+?)` which is not available.*following: (.*)",
        _metric,
    ),
]


def in_our_words(text: str) -> str:
    """Return an error of Lightning's in our words, or the text as it is."""
    for pattern, told in _KNOWN:
        if found := re.fullmatch(pattern, text):
            return told(found)
    return text
