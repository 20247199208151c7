"""Verification of a merged model: its logits and losses against the base with its adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_lightning.adapters.folder import SavedAdapter
from peft_lightning.export.reference import Reference, logits_of, reference_of

# Largest allowed difference of a logit, in standard deviations of the logits. A LoRA of all layers
# of SmolLM2-135M after 27 steps of configs/quickstart.yaml gives 1e-4, 0.09 and 0.45, at an outlier
# among 137 x 49152 logits. A merge that is wrong, not rounded, is above MOST_NOISE besides.
THRESHOLDS = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.2, torch.bfloat16: 1.0}
MOST_NOISE = 0.5
SHAKES, LEAST_STEADY = 12, 0.5  # how often rounding is tried, and the share of tokens it leaves

TEXT = """The lighthouse keeper climbed 199 steps each evening. At the top she wiped the salt from
the glass, lit the lamp and wrote the weather into a book: wind from the west, rain by midnight.
Question: How many apples are left if 7 of 12 are eaten?
Answer: 12 - 7 = 5 apples are left.
def mean(values):
    return sum(values) / len(values)
{"device": "lamp", "room": "kitchen", "action": "off"}
Ein kurzer Satz auf Deutsch. Une phrase en français.
"""


@dataclass(frozen=True)
class Comparison:
    """The differences between a merged model and its base with the adapter.

    Args:
        tokens: Number of tokens compared.
        difference: Largest absolute difference of a logit.
        spread: Standard deviation of the logits of base and adapter.
        noise: Root mean square of the difference, relative to that of the adapter's effect on
            the base's logits: 1 if merging has changed nothing, 0 if there is neither, or no
            adapter.
        merged_loss: Mean loss of the merged model, in nats per token.
        adapter_loss: Mean loss of base and adapter, in nats per token.
        left_out: Further tokens, whose logits are a matter of rounding in base and adapter too.
    """

    tokens: int
    difference: float
    spread: float
    noise: float
    merged_loss: float
    adapter_loss: float
    left_out: int = 0

    def problem(self, threshold: float) -> str | None:
        """Return the problem if a logit differs by more than ``threshold`` standard deviations."""
        relative = self.difference / self.spread if self.difference else 0.0
        if not relative <= threshold:  # not finite is wrong too
            return (
                f"its logits differ from those of base and adapter by up to {self.difference:.3g}, "
                f"{relative:.3g} of their standard deviation, and {threshold:g} is allowed"
            )
        if not (self.noise <= MOST_NOISE or relative <= THRESHOLDS[torch.float32]):
            return (
                f"the difference to base and adapter is {self.noise:.0%} of what the adapter does: "
                "rounding the weights hides what was trained; merge with --dtype float32, or serve "
                "the adapter unmerged"
            )
        return None

    def __str__(self) -> str:
        others = f" without {self.left_out} where rounding decides" if self.left_out else ""
        return (
            f"{self.tokens} tokens{others}: logits differ by at most {self.difference:.3g} "
            f"(their standard deviation is {self.spread:.3g}), {self.noise:.1%} of the adapter's "
            f"effect; loss {self.merged_loss:.5f} merged, {self.adapter_loss:.5f} base and adapter"
        )


def compare(
    out: str,
    base: str,
    ckpt_path: str | None,
    text: str,
    device: str,
    options: dict[str, Any],
    quantization: str | None = None,
    saved: SavedAdapter | None = None,
    threshold: float = THRESHOLDS[torch.float32],
) -> Comparison:
    """Compare a merged model with its base and adapter on ``text``.

    Both are computed in float32, one after the other, so that only merging and rounding the
    weights make a difference. If they differ, it is looked for tokens at which base and adapter
    themselves are moved as far by rounding; those are left out, if they are not most.

    Args:
        out: Folder or GGUF file of the merged model.
        base: As of ``reference_of``, and the others too.
        ckpt_path: As there.
        text: As there.
        device: As there.
        options: As there.
        quantization: As there.
        saved: As there.
        threshold: Largest allowed difference of a logit, in standard deviations of the logits.

    Raises:
        UserError: If the text has less than two tokens.
    """
    given: dict[str, Any] = {"quantization": quantization, "saved": saved}
    reference = reference_of(base, ckpt_path, text, device, options, **given)
    found = logits_of(out, reference.rows, device, options, quantization is None)
    comparison = compare_logits(reference, found)
    if comparison.problem(threshold) is None:
        return comparison
    reference = reference_of(base, ckpt_path, text, device, options, **given, shakes=SHAKES)
    steady = reference.steady(threshold * comparison.spread)
    if steady.all() or steady.float().mean() < LEAST_STEADY:
        return comparison
    return compare_logits(reference, found, steady)


def compare_logits(
    reference: Reference, found: Sequence[Tensor], steady: Tensor | None = None
) -> Comparison:
    """Compare the logits that a merged model has for the rows of ``reference``.

    Args:
        reference: What they are compared with.
        found: (T, V) for each row.
        steady: Whether each token is compared, (N,); all are if None.
    """
    adapted, plain, rows = reference.adapted, reference.plain, reference.rows
    errors = torch.cat([f - a for f, a in zip(found, adapted, strict=True)])
    known = plain[0].shape[-1]  # the base has no logits of new tokens
    effect = torch.cat([a[..., :known] - p for a, p in zip(adapted, plain, strict=True)])
    if steady is not None:
        errors, effect = errors[steady], effect[steady]
    any_error = float(bool(errors.any()) and adapted is not plain)
    return Comparison(
        tokens=len(errors),
        difference=errors.abs().max().item(),
        spread=torch.cat(adapted).std().item(),
        noise=errors.norm().item() / size if (size := effect.norm().item()) else any_error,
        merged_loss=_mean_loss(found, rows),
        adapter_loss=_mean_loss(adapted, rows),
        left_out=sum(map(len, rows)) - len(errors),
    )


def _mean_loss(logits: Sequence[Tensor], rows: Sequence[Sequence[int]]) -> float:
    """Return the mean loss over all tokens that have one before them, in nats."""
    losses = [
        F.cross_entropy(found[:-1].double(), torch.tensor(row[1:]), reduction="none")
        for found, row in zip(logits, rows, strict=True)
    ]
    return torch.cat(losses).mean().item()
