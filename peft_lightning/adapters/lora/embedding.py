"""LoRAEmbedding: a frozen embedding with a trainable low-rank update, and heads tied to one."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_lightning.adapters.base import adapter_dtype
from peft_lightning.adapters.lora.layers import LoRALinear


class LoRAEmbedding(nn.Module):
    """``y = base_layer(i) + scaling * B A[:, i]``, with ``base_layer`` frozen.

    ``A`` starts at zero and ``B`` is drawn from N(0, 1): the other way round than in a linear
    layer, as in HF PEFT. Both are float32 (float64 over float64); the update is computed in the
    dtype of the base's rows. Where the base scales what it looks up (Gemma), the update is scaled
    likewise. There is no dropout: the input is a token's id.

    Args:
        base_layer: The frozen embedding, (V, dim). Kept, not copied.
        r: Rank of the update; ``lora_embedding_A`` is (r, V), ``lora_embedding_B`` (dim, r).
        scaling: Factor on the update.
        init: True for the above, False draws both from N(0, 1), for tests; None leaves both zero,
            to be loaded.
    """

    def __init__(
        self, base_layer: nn.Embedding, r: int, scaling: float, init: bool | str | None = True
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.scaling = scaling
        rows, dim = self.weight.shape
        dtype = adapter_dtype(self.weight.dtype)
        # drawn on the CPU as HF PEFT does it, so that a seed gives the same adapter everywhere
        a, b = (torch.zeros(shape, dtype=dtype, device="cpu") for shape in ((r, rows), (dim, r)))
        if init is not None:
            a.copy_(torch.randn(a.shape))
            b.copy_(torch.randn(b.shape))
        if init:
            a.zero_()
            b.copy_(torch.randn(b.shape))
        self.lora_embedding_A = nn.Parameter(a.to(self.weight.device))
        self.lora_embedding_B = nn.Parameter(b.to(self.weight.device))

    @property
    def r(self) -> int:
        return len(self.lora_embedding_A)

    @property
    def weight(self) -> Tensor:  # some models look at their layers' weight
        return self.base_layer.weight

    def forward(self, ids: Tensor) -> Tensor:
        y = self.base_layer(ids)
        # no gradient reaches the row of the padding token, as in the base
        a = F.embedding(ids, self.lora_embedding_A.T, self.base_layer.padding_idx).to(y.dtype)
        update = F.linear(a, self.lora_embedding_B.to(y.dtype))  # (..., r) -> (..., dim)
        return y + (update * self.scaling * lookup_scale(self.base_layer)).to(y.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """Return the trained tensors by their names in the layer."""
        return dict(self.named_parameters(recurse=False))

    def extra_repr(self) -> str:
        return f"r={self.r}, scaling={self.scaling:g}"


class Transposed(nn.Module):
    """Stands for a linear layer whose weight is the transpose of another layer's parameter.

    Args:
        owner: Has the parameter; not registered here, so that it stays one parameter.
        name: Of the parameter.
    """

    bias = None

    def __init__(self, owner: nn.Module, name: str) -> None:
        super().__init__()
        self._owner, self._name = [owner], name

    @property
    def weight(self) -> Tensor:
        return cast(Tensor, getattr(self._owner[0], self._name)).T

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]


def tied_head(base_layer: nn.Module, embedding: LoRAEmbedding) -> LoRALinear:
    """Return an output embedding that has the update of the input ``embedding``, as one tensor.

    Its weight and update are the transposes: ``A`` is ``lora_embedding_B.T`` and ``B`` is
    ``lora_embedding_A.T``. There is one gradient, the sum of both uses; HF PEFT holds two
    parameters on one memory, and its optimizers step twice.
    """
    head = LoRALinear(base_layer, embedding.r, embedding.scaling, init=None)
    head.lora_A = cast(Any, Transposed(embedding, "lora_embedding_B"))
    head.lora_B = cast(Any, Transposed(embedding, "lora_embedding_A"))
    return head


def is_embedding(layer: nn.Module) -> bool:
    """Whether ``layer`` looks up rows and at most scales them."""
    return isinstance(layer, nn.Embedding) and (
        type(layer).forward is nn.Embedding.forward or hasattr(layer, "embed_scale")
    )


def lookup_scale(layer: nn.Module) -> Any:
    """Return what an embedding multiplies its rows by."""
    return getattr(layer, "embed_scale", 1.0)
