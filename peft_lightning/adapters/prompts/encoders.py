"""Encoders that make the virtual tokens of p-tuning and prefix tuning, of HF PEFT's shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.func import functional_call

ENCODER = "prompt_encoder"  # attribute of a model, and what its tensors' names begin with


class Encoder(nn.Module):
    """A row for each virtual token, and layers that make the token of it.

    Its parameters are float32 or float64, also under autocast.

    Args:
        rows: Number of virtual tokens.
        dim: Width of a row.
        layers: Name of the layers, as HF PEFT's, and the layers: (rows, dim) -> (rows, any).
        lstm: A bidirectional LSTM before them.
    """

    def __init__(
        self, rows: int, dim: int, layers: tuple[str, nn.Module], lstm: nn.LSTM | None = None
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, dim)
        self.lstm_head = lstm
        self.last = layers[0]
        self.add_module(*layers)

    def forward(self) -> Tensor:
        """Return the virtual tokens, (rows, any)."""
        x = self.embedding.weight
        with torch.autocast(x.device.type, enabled=False):
            if self.lstm_head is not None:
                x = self.lstm_head(x[None])[0][0]
            made: Tensor = self.get_submodule(self.last)(x)
        return made


def mlp_encoder(rows: int, dim: int, hidden: int) -> Encoder:
    """Return p-tuning's encoder of three linear layers (arXiv:2103.10385, as in HF PEFT)."""
    parts = [nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
    return Encoder(rows, dim, ("mlp_head", nn.Sequential(*parts, nn.Linear(hidden, dim))))


def lstm_encoder(rows: int, dim: int, hidden: int, layers: int, dropout: float) -> Encoder:
    """Return p-tuning's encoder of an LSTM and two linear layers (section 2.2)."""
    lstm = nn.LSTM(dim, hidden, layers, batch_first=True, dropout=dropout, bidirectional=True)
    both = 2 * hidden
    head = nn.Sequential(nn.Linear(both, both), nn.ReLU(), nn.Linear(both, dim))
    return Encoder(rows, dim, ("mlp_head", head), lstm)


def prefix_encoder(rows: int, dim: int, hidden: int, out: int, zero: bool) -> Encoder:
    """Return prefix tuning's encoder of two linear layers (arXiv:2101.00190, section 4.3).

    Args:
        rows: Number of virtual tokens.
        dim: Width of a row.
        hidden: Width between the layers.
        out: Keys and values of a token, in all layers of the base.
        zero: Whether they start at zero.
    """
    last = nn.Linear(hidden, out)
    if zero:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return Encoder(rows, dim, ("transform", nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), last)))


def virtual_tokens(model: Any) -> Tensor:
    """Return the virtual tokens of a model, (n, any), with their gradient to what is trained."""
    encoder = getattr(model, ENCODER, None)
    tokens: Tensor = model.prompt_embeddings if encoder is None else encoder()
    return tokens


def token_width(model: Any) -> int:
    """Return the width of a virtual token, also of one that several processes share."""
    encoder = getattr(model, ENCODER, None)
    if encoder is None:
        return int(model.prompt_embeddings.shape[1])
    return int(encoder.get_submodule(encoder.last)[-1].weight.shape[0])


def tensors_of(model: Any) -> dict[str, Tensor]:
    """Return the virtual tokens and, if there is one, the encoder's parameters, by their names.

    If several processes share the parameters, all of them must call it.
    """
    encoder = getattr(model, ENCODER, None)
    if encoder is None:
        return {"prompt_embeddings": model.prompt_embeddings}
    named = dict(encoder.named_parameters())
    trains = encoder.training
    encoder.eval()  # what is saved has no dropout
    try:
        made = functional_call(encoder, {n: _whole(p) for n, p in named.items()}, ())
    finally:
        encoder.train(trains)
    return {"prompt_embeddings": made} | {f"{ENCODER}.{n}": p for n, p in named.items()}


def names_of(model: Any) -> set[str]:
    """Return the names of ``tensors_of``, without making anything."""
    encoder = getattr(model, ENCODER, None)
    named = () if encoder is None else encoder.named_parameters()
    return {"prompt_embeddings", *(f"{ENCODER}.{name}" for name, _ in named)}


def has_encoder(names: Mapping[str, Any]) -> bool:
    """Whether a file's tensors, by ``names``, are those of virtual tokens with their encoder."""
    return any(name.startswith(f"{ENCODER}.") for name in names)


def _whole(parameter: Tensor) -> Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
