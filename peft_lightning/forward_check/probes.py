"""Short batches of a run's rows, and how far a model's outputs for them are from its own ones."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from peft_lightning.base_model.quantization import rounds_inputs
from peft_lightning.kernels.native.stored import output_dtype

Batch = dict[str, Any]

LENGTHS = (17, 9, 13)  # of the probes: a forward pass of few tokens costs what its weights do
_LOGITS = 8192  # of a large vocabulary that are compared
COMPARED = 32  # positions at the end of a long probe whose outputs are compared

# what a config calls a number of tokens at which attention or positions change
_BOUNDARY = re.compile(r"window|chunk|top_?k|block|span|stride|local|original_max_position")


def rows_of(batch: Mapping[str, Any]) -> list[Tensor]:
    """Return the token ids of each row of a batch, flat or padded, without padding."""
    ids: Tensor = batch["input_ids"]
    if "seq_lens" in batch:
        return list(ids[0].split(list(batch["seq_lens"])))
    if (mask := batch.get("attention_mask")) is None:
        return list(ids)
    return [row[kept.bool()] for row, kept in zip(ids, mask, strict=True)]


def longest_of(batch: Mapping[str, Any]) -> int:
    """Return the length of the longest row of a batch, its padding included."""
    return max(batch["seq_lens"]) if "seq_lens" in batch else int(batch["input_ids"].shape[1])


def short_probes(model: Any, rows: Sequence[Tensor], positions: int) -> list[Tensor]:
    """Return three short sequences of different lengths, the last of random tokens.

    Args:
        model: A causal LM of transformers.
        rows: Token ids of rows of the run; what they lack in length is filled by random tokens.
        positions: Tokens that a sequence may have at most.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    probes = []
    for i, length in enumerate(LENGTHS):
        own = rows[i][:length] if i < min(2, len(rows)) else rows[0][:0]
        more = torch.randint(vocabulary, (length - len(own),), generator=generator)
        probes.append(torch.cat([own, more.to(own)])[: max(2, positions - i)])
    return probes


def long_probes(rows: Sequence[Tensor], boundary: int, positions: int) -> list[Tensor]:
    """Return two sequences of a row that is longer than a boundary: one of them its end.

    Args:
        rows: Token ids of rows of the run.
        boundary: A length at which something changes.
        positions: Tokens that a sequence may have at most.
    """
    long = max(rows, key=len)[: min(positions, 2 * boundary + COMPARED)]
    return [long, long[len(long) // 3 :]]


def moved(model: Any, probe: Tensor, kept: int) -> Tensor:
    """Return a sequence with other tokens than ``probe`` after the first ``kept``."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    return torch.cat([probe[:kept], (probe[kept:] + 1) % vocabulary])


def boundaries(model: Any) -> list[int]:
    """Return the lengths at which the model's config says that attention or positions change."""
    return sorted({n for n in _numbers(model.config.to_dict()) if n > 1})


def flat(sequences: Sequence[Tensor], labelled: int | None = None) -> Batch:
    """Return sequences as a flat batch; see ``flat_collate``.

    Args:
        sequences: Token ids, (n,) each.
        labelled: Tokens at the end of each that have a label; all if None.
    """
    lens, device = [len(s) for s in sequences], sequences[0].device
    return {
        "input_ids": torch.cat(list(sequences))[None],
        "labels": torch.cat([_labels(s, labelled) for s in sequences])[None],
        "position_ids": torch.cat([torch.arange(n, device=device) for n in lens])[None],
        "cu_seq_lens": torch.tensor([0, *lens], device=device).cumsum(0).int(),
        "seq_lens": lens,
    }


def padded(sequences: Sequence[Tensor], labelled: int | None = None) -> Batch:
    """Return sequences as a batch that is padded on the right; see ``flat``."""

    def pad(parts: list[Tensor], value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=value)

    return {
        "input_ids": pad(list(sequences), 0),
        "labels": pad([_labels(s, labelled) for s in sequences], -100),
        "attention_mask": pad([torch.ones_like(s) for s in sequences], 0),
    }


class Rounding:
    """Tells what rounding explains from what it does not.

    Args:
        model: A causal LM of transformers, within the context that it computes in.
    """

    def __init__(self, model: Any) -> None:
        kind, dtype = model.device.type, output_dtype(model.get_input_embeddings())
        if torch.is_autocast_enabled(kind) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(kind)
        if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
            dtype = torch.bfloat16
        if rounds_inputs(model):
            dtype = torch.bfloat16
        self.is_fine, self.eps = dtype.itemsize > 2, torch.finfo(dtype).eps

    def gap(self, found: Tensor, expected: Tensor) -> float:
        """Return how far logits, (N, V), are from expected ones, relative to their spread.

        Of the positions it is the largest gap, in half precision the median: there a router may
        give a token to another expert by rounding alone.
        """
        step = 1 + expected.shape[-1] // _LOGITS  # whatever moves the states moves all of them
        found, size = found[:, ::step].double(), expected[:, ::step].double()
        error = found - size
        error = error - error.mean(-1, keepdim=True)  # softmax does not see a constant
        size = (size - size.mean(-1, keepdim=True)).square().mean().sqrt()
        gaps = error.square().mean(-1).sqrt() / size.clamp_min(torch.finfo(torch.float64).tiny)
        if gaps.isnan().any():
            return float("inf")
        return float(gaps.max() if self.is_fine else gaps.median())

    def excess(self, gaps: Sequence[float], moved: bool = False) -> float | None:
        """Return the largest gap of several sequences if rounding does not explain it, else None.

        30 layers of SmolLM2 lose 4e-6 in float32 and 0.03 to 0.07 in bfloat16, about as much in
        each sequence.

        Args:
            gaps: One or more.
            moved: Whether both sides were computed alike, so that they round alike, but for tokens
                that should not be seen.
        """
        limit = 2e-4
        if not self.is_fine:
            half = min(32 * self.eps, max(15 * self.eps, 4 * min(gaps)))
            limit = 2.5 * self.eps if moved else half
        return None if max(gaps) <= limit else max(gaps)


def _labels(sequence: Tensor, labelled: int | None) -> Tensor:
    """Label the last tokens; never the first, which only a virtual token could predict."""
    labels = sequence.clone()
    labels[: 1 if labelled is None else max(1, len(labels) - labelled)] = -100
    return labels


def _numbers(config: Any) -> Iterator[int]:
    """Yield the integers of a config whose names say that they are boundaries."""
    if not isinstance(config, Mapping):
        return
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif _BOUNDARY.search(str(name)):
            values = value if isinstance(value, list | tuple) else [value]
            yield from (v for v in values if isinstance(v, int) and not isinstance(v, bool))
