"""Finds the fastest way to run a model that computes what its own forward does, on given rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from peft_lightning.base_model.positions import positions_of
from peft_lightning.forward_check.probes import (
    COMPARED,
    Batch,
    Rounding,
    flat,
    long_probes,
    moved,
    padded,
    short_probes,
)
from peft_lightning.forward_check.ways import WAYS, Way
from peft_lightning.kernels.own_forward import OwnForward
from peft_lightning.messages import UserError

Logits = Callable[[Batch], Tensor]  # (N, V): those that predict the labelled tokens of a batch
Form = Callable[[Sequence[Tensor]], Batch]
Losses = Callable[[Batch], tuple[Tensor, Tensor]]  # the model's own mean loss, and ours


class Search:
    """Compares ways to run a model with its own forward.

    Args:
        model: A causal LM of transformers, in eval mode.
        own: What it computes with by itself.
        logits: Computes its logits for a batch, as it computes now.
        rows: Token ids of rows of the run.
        virtual: Virtual tokens that its adapter puts before each row.
    """

    def __init__(
        self, model: Any, own: OwnForward, logits: Logits, rows: Sequence[Tensor], virtual: int
    ) -> None:
        self.model, self.own, self.logits, self.rows = model, own, logits, list(rows)
        self.virtual = virtual
        self.name, self.rounding = type(model).__name__, Rounding(model)
        self.positions = (positions_of(model).number or 1 << 40) - virtual
        self.probes = short_probes(model, self.rows, self.positions)
        self.expected: list[Tensor] = []

    def run(self, layout: str, boundary: int | None) -> tuple[Way, list[str]]:
        """Return the fastest way, and why those before it were not taken.

        Args:
            layout: Of the run's batches: flat or padded.
            boundary: A length that one of the rows is longer than, which is compared too.

        Raises:
            UserError: If no way is right, or the model's own forward is not causal, or fails.
        """
        self._compute_own()
        sequences = [] if boundary is None else long_probes(self.rows, boundary, self.positions)
        with self.own.using():
            long = [(each, self.logits(padded([each], COMPARED))) for each in sequences]
        reasons: list[str] = []
        for way in WAYS:
            if layout == "padded" and way.layout == "flat":
                continue
            if way.layout == "padded" and way.attention and not self._has(way):
                continue
            problem = self._problem(way, long)
            if problem is None:
                return way, reasons
            reasons.append(f"{way}: {problem}")
        if way.layers and "fails" not in reasons[-1]:  # which is its own forward of a row
            raise UserError(
                f"{self.name} cannot be trained: its own forward gives other outputs each time "
                f"that it computes a row ({problem})"
            )
        raise UserError(
            f"{self.name} cannot be trained: no way to run it computes what its own forward "
            f"does for a row alone ({'; '.join(reasons)})"
        )

    def other_loss(self, losses: Losses) -> str | None:
        """Return how the model's own loss of a row differs from ours, in a line; None if not."""
        with self.own.using(), suppress(AttributeError, TypeError, ValueError, NotImplementedError):
            own, ours = (float(loss) for loss in losses(padded(self.probes[1:2])))
            if not abs(own - ours) <= (1e-3 if self.rounding.is_fine else 0.05) * abs(own):
                return (
                    f"{self.name}'s own loss of a row is {own:.4g}, that of its tokens {ours:.4g}: "
                    "the loss here is the cross-entropy of the labelled tokens, without the "
                    "model's own further terms"
                )
        return None

    def _has(self, way: Way) -> bool:
        """Whether ``way`` is another than the one before it."""
        return bool(self.own.forwards) if way.layers else self.own.has_ours

    def _compute_own(self) -> None:
        """Compute what the model's own forward gives for each probe alone.

        Raises:
            UserError: If it fails, or lets a token see a later one.
        """
        middle = self.probes[1]
        kept = len(middle) // 2
        alone = [*self.probes, moved(self.model, middle, kept)]
        try:
            with self.own.using():
                *self.expected, other = [self.logits(padded([probe])) for probe in alone]
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a model makes of a row
            what = f"{self.name} cannot compute a row"
            if self.virtual:
                what += (
                    " with virtual tokens, which have no ids: train a LoRA, as it may ask for the "
                    "ids of all tokens"
                )
            raise UserError(f"{what}: {_short(error)}") from error
        gap = self.rounding.gap(other[:kept], self.expected[1][:kept])
        if self.rounding.excess([gap], moved=True):
            raise UserError(
                f"{self.name} cannot be trained to predict the next token: in its own forward a "
                "token sees those after it, and with them the answer; if it is made for both, its "
                "config says so (is_decoder: true or attn_type: uni)"
            )

    def _problem(self, way: Way, long: list[tuple[Tensor, Tensor]]) -> str | None:
        """Return what is wrong with ``way``; None if nothing is."""
        try:
            with self.own.using(way.attention, way.layers):
                return self._short_problem(way) or self._long_problem(way, long)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model makes of inputs it does not know
            return f"its forward fails, {_short(error)}"

    def _short_problem(self, way: Way) -> str | None:
        probes, expected = self.probes, self.expected
        if way.layout == "rows":
            found = [self.logits(padded([probe])) for probe in probes]
            return self._differs(found, expected)
        if way.layout == "padded":
            least = min(map(len, probes))  # without padding there may be no mask at all
            return self._together(
                padded, [probe[:least] for probe in probes], "of one length"
            ) or self._differs(self._split(padded(probes)), expected)
        return self._together(flat, probes)

    def _together(self, form: Form, probes: list[Tensor], which: str = "") -> str | None:
        """Return what is wrong with sequences in one batch; None if nothing is.

        In half precision rounding hides what another token does to a sequence: there the others are
        moved, and its own later tokens. Rounding is alike then.
        """
        found = self._split(form(probes))
        expected = [e[: len(f)] for e, f in zip(self.expected, found, strict=True)]
        problem = self._differs(found, expected, which)
        if problem or self.rounding.is_fine:  # its own forward is causal, as was seen
            return problem
        kept = len(probes[1]) // 2
        others = [moved(self.model, probe, kept * (i == 1)) for i, probe in enumerate(probes)]
        gap = self.rounding.gap(self._split(form(others))[1][:kept], found[1][:kept])
        if self.rounding.excess([gap], moved=True):
            return f"tokens that they should not see move outputs by {gap:.2g}"
        return None

    def _long_problem(self, way: Way, long: list[tuple[Tensor, Tensor]]) -> str | None:
        if not long:
            return None
        sequences, expected = zip(*long, strict=True)
        if way.layout == "rows":
            found = [self.logits(padded([sequence], COMPARED)) for sequence in sequences]
        else:
            form = flat if way.layout == "flat" else padded
            found = self._split(form(sequences, COMPARED), COMPARED)
        return self._differs(found, list(expected), f"of {len(sequences[0])} tokens")

    def _split(self, batch: Batch, labelled: int | None = None) -> list[Tensor]:
        """Return the logits of each sequence of a batch."""
        lens = batch.get("seq_lens")
        lens = batch["attention_mask"].sum(1).tolist() if lens is None else lens
        counts = [min(n - 1, n if labelled is None else labelled) for n in lens]
        return list(self.logits(batch).split(counts))

    def _differs(self, found: list[Tensor], expected: list[Tensor], which: str = "") -> str | None:
        gaps = [self.rounding.gap(f, e) for f, e in zip(found, expected, strict=True)]
        excess = self.rounding.excess(gaps)
        if excess is None:
            return None
        return f"outputs of rows {which} are {excess:.2g} off".replace("  ", " ")


def _short(error: Exception) -> str:
    """Return the first line of an error, with its type where that says more."""
    line = str(error).strip().split("\n")[0][:120]
    return line if isinstance(error, UserError) else f"{type(error).__name__}: {line}"
