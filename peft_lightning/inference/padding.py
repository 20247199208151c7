"""Which prompts a model can answer in one batch: found by a probe, as no name tells it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from peft_lightning.base_model.quantization import rounds_inputs

PADDED, EQUAL_LENGTH, ALONE = "padded", "of equal length", "alone"

_FOUND = "_answers_in_batches"  # attribute of a model: what the probes of its adapters found

Rows = Sequence[Sequence[int]]


def batches_of(
    model: Any, adapter: Any, rows: Rows, first_logits: Callable[[Rows], tuple[Tensor, ...]]
) -> str:
    """Return in which batches the answer to a prompt does not depend on the other prompts.

    The shortest of the prompts is answered beside the longest, left-padded, and alone. A recurrent
    model whose state takes in the padding answers otherwise then. The model remembers what was
    found; a prompt that is more than twice as long, beyond a window perhaps, is another probe.

    Args:
        model: A causal LM.
        adapter: The attached adapter; None if there is none.
        rows: Token ids of the prompts.
        first_logits: Token ids of prompts -> the logits of the first two tokens of their answers,
            (B, V) each.

    Returns:
        ``PADDED``: any; ``EQUAL_LENGTH``: prompts of one length; ``ALONE``: one prompt.
    """
    if len(rows) < 2:
        return PADDED
    short = min(rows, key=len)
    long = max(rows, key=lambda row: (len(row), list(row) != list(short)))
    remembered: dict[Any, tuple[str, int]] = model.__dict__.setdefault(_FOUND, {})
    found, length = remembered.get(type(adapter), (PADDED, 0))
    if found == PADDED and len(long) > 2 * length:
        coarse = rounds_inputs(model) or _is_half(model)
        alone = first_logits([short])
        gap = _gap(alone, first_logits, [short, long], coarse)
        if gap is not None:
            padded = len(short) < len(long)
            found = EQUAL_LENGTH if padded else ALONE
            if padded and _gap(alone, first_logits, [short, _cut(long, short)], coarse):
                found = ALONE
            how = "one by one" if found == ALONE else "in batches of equal length"
            print(
                f"{type(model).__name__}: prompts are answered {how}, as beside a "
                f"{'longer' if padded else 'second'} one a prompt gets other answers ({gap})",
                file=sys.stderr,
            )
        remembered[type(adapter)] = found, len(long)
    return found


def _is_half(model: Any) -> bool:
    """Whether a model computes in two bytes; the logits that ``generate`` returns are float32."""
    device = model.device.type
    half = (torch.bfloat16, torch.float16)
    return model.dtype in half or (
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) in half
    )


def _cut(long: Sequence[int], short: Sequence[int]) -> Sequence[int]:
    """Return a part of ``long`` that is as long as ``short``, and another text if there is one."""
    parts = [long[i : i + len(short)] for i in range(len(long) - len(short) + 1)]
    return next((part for part in parts if list(part) != list(short)), parts[0])


def _gap(
    alone: tuple[Tensor, ...],
    first_logits: Callable[[Rows], tuple[Tensor, ...]],
    pair: Rows,
    coarse: bool,
) -> str | None:
    """Return how the logits of the first of a ``pair`` differ from ``alone``; None if not."""
    try:
        together = first_logits(pair)
    except Exception as error:  # whatever a model makes of padding it does not know
        return f"its forward fails: {error}".split("\n")[0]
    for ours, theirs in zip(alone, together, strict=True):
        finite = ours[0].isfinite()
        expected, found = ours[0][finite], theirs[0][finite]
        tolerance = (0.05 if coarse else 1e-3) * max(1.0, expected.abs().max().item())
        gap = (expected - found).abs().max().item()
        if not gap <= tolerance:
            return f"logits differ by {gap:.2g}"
        if expected.argmax() != found.argmax():
            return None  # rounding decides, and the next token has another text before it
    return None
