"""The lowest decoder layers, which no gradient reaches: how many there are, and skipping them.

Frozen weights on inputs without a gradient make no graph, so autograd keeps nothing of these
layers. Their output is a function of a row's tokens alone: see ``cache``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_lightning.kernels.decoder_layers import decoder_layers
from peft_lightning.kernels.patch import wrap_forward


def frozen_depth(model: Any) -> int:
    """Return how many of the lowest decoder layers have nothing trained in or below them.

    Args:
        model: A causal LM of transformers with an adapter in it, one that leaves inputs alone.
    """
    layers = decoder_layers(_decoder(model))
    inside = {id(p): i for i, layer in enumerate(layers) for p in layer.parameters()}
    head = model.get_output_embeddings()
    above = {id(p) for p in head.parameters()} if head is not None else set()
    decoder = {id(p) for p in _decoder(model).parameters()}
    depth, passed = len(layers), False
    for parameter in model.parameters():  # in the order in which modules were put in
        place = inside.get(id(parameter))
        passed = passed or place is not None
        if not parameter.requires_grad:
            continue
        if place is not None:
            depth = min(depth, place)
        elif id(parameter) in decoder:
            depth = depth if passed else 0
        elif id(parameter) not in above:
            return 0
    return depth


def _decoder(model: Any) -> nn.Module:
    decoder = getattr(model, "get_decoder", lambda: None)()
    return model if decoder is None else decoder


class _ReachedError(Exception):
    """The last frozen layer has run."""


class FrozenLayers:
    """The lowest ``count`` decoder layers of a model: they can be run alone, or be skipped.

    Args:
        model: A causal LM of transformers; the layers' ``forward`` is wrapped.
        count: At least 1.
    """

    def __init__(self, model: nn.Module, count: int) -> None:
        self.count = count
        self._given: Tensor | None = None
        self._alone = False
        self._decoder = _decoder(model)
        self._all = decoder_layers(_decoder(model))
        for i, layer in enumerate(self._all[:count]):
            wrap_forward(layer, partial(self._forward, i == count - 1))

    def random_module(self) -> str | None:
        """Return the name of a module in or below these layers that may draw random numbers."""
        above = {m for layer in self._all[self.count :] for m in layer.modules()}
        for name, module in self._decoder.named_modules():
            if module.training and module not in above:  # attention drops weights then, too
                return name or type(module).__name__
        return None

    @torch.no_grad()
    def run(self, **inputs: Any) -> Tensor:
        """Return the last one's output for a batch, (B, T, d); what is above does not run."""
        self._alone = True
        try:
            with suppress(_ReachedError):
                self._decoder(**inputs, use_cache=False)
        finally:
            self._alone = False
        states, self._given = self._given, None
        assert states is not None, "the layers did not run"
        return states

    @contextmanager
    def skipped(self, states: Tensor) -> Iterator[None]:
        """Let ``states``, (B, T, d), be the last one's output, and none of them run.

        Where the model's inputs are longer than T, the rest is padding, which no label sees.
        """
        self._given = states
        try:
            yield
        finally:
            self._given = None

    def _forward(self, last: bool, forward: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._given is not None:
            padding = hidden.shape[1] - self._given.shape[1]
            return F.pad(self._given, (0, 0, 0, padding)) if last else hidden
        output = forward(hidden, *args, **kwargs)
        if self._alone and last:
            self._given = output
            raise _ReachedError  # nothing above is needed
        return output
