"""Token-weighted means over an evaluation and each of its sources: loss, accuracy, bits a byte."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from peft_lightning.training.labelled_bytes import LabelledBytes
from peft_lightning.training.sanity_checks import SanityChecks


class TokenMean(Metric):
    """A sum over tokens divided by their number, in float64, over all processes.

    torchmetrics' ``MeanMetric`` computes in float32 once it has been moved to a device.
    """

    total: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "tokens"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, total: Tensor, tokens: Tensor) -> None:
        """Add the sum over some tokens, and their number or the sum of their weights."""
        self.total = self.total + total  # not in place: reset in inference mode makes tensors
        self.tokens = self.tokens + tokens  # that cannot be changed outside of it

    def compute(self) -> Tensor:
        """Return the mean, nan of no tokens."""
        return self.total / self.tokens


class TokenMeans(nn.Module):
    """Gathers the losses of batches of a validation or a test, over all processes."""

    def __init__(self) -> None:
        super().__init__()
        self.nll, self.correct = TokenMean(), TokenMean()
        self.bits, self.counted = TokenMean(), TokenMean()  # a byte; the tokens that have bytes

    def update(
        self,
        nll: Tensor,
        tokens: Tensor,
        correct: Tensor | None,
        labelled: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            nll: Summed loss in nats.
            tokens: Labelled tokens, or the sum of their weights; 0 in a process that has no rows
                left, which takes part in the mean all the same.
            correct: Tokens that were predicted correctly, or the sum of their weights; None if
                they were not counted.
            labelled: The labelled tokens and their bytes of ``LabelledBytes.count``.
        """
        tokens = torch.as_tensor(tokens, device=nll.device)
        self.nll.update(nll.detach(), tokens)
        if correct is not None:
            self.correct.update(correct, tokens)
        if labelled is not None:
            self.counted.update(labelled[0], tokens)
            self.bits.update(nll.detach().double() / math.log(2), labelled[1])

    def log(self, module: Any, stage: str, source: str = "") -> None:
        """Log the means of all batches, and forget these.

        Args:
            module: The ``LightningModule`` that is evaluated.
            stage: val or test, with which the names begin.
            source: The source of the batches, with which the names end; empty for all sources.
        """
        end = f"/{source}" if source else ""
        if self.nll.update_called:
            loss = self.nll.compute()
            values = {f"{stage}/loss{end}": loss, f"{stage}/perplexity{end}": loss.exp()}
            if self.correct.update_called:
                values[f"{stage}/token_accuracy{end}"] = self.correct.compute()
            if self.counted.update_called:
                bits, counted = self.bits.compute(), self.counted.compute()
                # a loss over other tokens than those with bytes is not one of their text
                if abs(float(counted) - 1) < 1e-6 and math.isfinite(bits):
                    values[f"{stage}/bits_per_byte{end}"] = bits
            for name, value in values.items():
                module.log(name, value, prog_bar=name == "val/loss")
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        for mean in (self.nll, self.correct, self.bits, self.counted):
            mean.reset()


class Evaluation(nn.Module):
    """The means over all batches of an evaluation, and over those of each source with a name.

    A batch is of one source, the same in all processes at each step, so all processes have the
    means of the same sources, also if an evaluation ends early.
    """

    def __init__(self) -> None:
        super().__init__()
        self.all = TokenMeans()
        self._batches: list[tuple[Tensor, Tensor]] = []
        self.sources: dict[str, TokenMeans] = {}  # not a ModuleDict: a name may contain a dot
        self._tokenizer: Any = None
        self.bytes = LabelledBytes(None)

    def update(self, nll: Tensor, tokens: Tensor, correct: Tensor | None, batch: Any) -> None:
        """Add a batch, as ``TokenMeans.update``; its ``source`` names its source, if any.

        Raises:
            UserError: If the loss leaves out the weights of the batch.
        """
        SanityChecks.check_weights(tokens, batch)
        labelled = self.bytes.count(batch)
        self.all.update(nll, tokens, correct, labelled)
        self._batches.append((nll.detach(), torch.as_tensor(tokens, device=nll.device)))
        source = batch.get("source") if isinstance(batch, Mapping) else None
        if source is None:
            return
        if source not in self.sources:  # of the same device and dtype
            self.sources[source] = copy.deepcopy(self.all)
            self.sources[source].reset()
        self.sources[source].update(nll, tokens, correct, labelled)

    def start(self, tokenizer: Any) -> None:
        """Forget all batches, and take the tokenizer of those that follow; None if unknown."""
        self.reset()
        if tokenizer is not self._tokenizer:
            self._tokenizer, self.bytes = tokenizer, LabelledBytes(tokenizer)

    def take_batches(self) -> Tensor:
        """Return the summed loss and the tokens of each batch of this process, (B, 2) float64."""
        rows = [torch.stack([nll.double(), n.double()]) for nll, n in self._batches]
        self._batches = []
        return torch.stack(rows).cpu() if rows else torch.zeros(0, 2, dtype=torch.float64)

    def reset(self) -> None:
        """Forget all batches."""
        self.all.reset()
        self._batches = []
        for means in self.sources.values():
            means.reset()

    def log(self, module: Any, stage: str) -> None:
        """Log the means over all batches, and over those of each source."""
        self.all.log(module, stage)
        for name, means in self.sources.items():
            means.log(module, stage, name)


def with_source(trainer: Any, batch: Any, index: int) -> Any:
    """Return a batch of one of several loaders with the name of that loader as its source.

    Args:
        trainer: Evaluates; its loaders have the names of a mapping, or are counted from 0.
        batch: Of the loader ``index``. One that names its source, or is no mapping, is returned
            as it is, as is that of the only loader.
        index: The ``dataloader_idx`` of Lightning.
    """
    combined = trainer._evaluation_loop._combined_loader
    loaders = None if combined is None else combined.iterables
    is_one_by_one = combined is not None and combined._mode == "sequential"
    if not is_one_by_one or not isinstance(loaders, dict | list | tuple) or len(loaders) < 2:
        return batch
    if not isinstance(batch, Mapping) or batch.get("source") is not None:
        return batch
    name = [*loaders][index] if isinstance(loaders, dict) else index
    return {**batch, "source": str(name)}
