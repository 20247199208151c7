"""LoRALinear: a frozen linear layer with a trainable low-rank update (arXiv:2106.09685)."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_lightning.adapters.base import adapter_dtype


class LoRALinear(nn.Module):
    """``y = base_layer(x) + scaling * B(A(dropout(x)))``, with ``base_layer`` frozen.

    Dtypes: ``A`` and ``B`` are kept in float32 (float64 over a float64 base). The update is
    computed in the dtype of ``x``: over a bfloat16 or float16 base the two small matrices are
    cast down, never the input up; for a float32 ``x`` everything is float32, as in HF PEFT.
    Under autocast its dtype rules, as for any linear layer. The update is added in the dtype of
    the base layer's output, which is the dtype of ``y``.

    Args:
        base_layer: The frozen ``nn.Linear`` or GPT-2's ``Conv1D``, (..., in) -> (..., out).
            Kept, not copied.
        r: Rank of the update; ``A`` is (r, in) and ``B`` is (out, r), for ``Conv1D`` too.
        scaling: Factor on the update: ``lora_alpha / r`` in the paper, section 4.1.
        dropout: Probability of zeroing an input feature of the update, in [0, 1).
        init: How ``init_lora`` draws ``A`` and ``B``; None leaves both zero, to be loaded.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        r: int,
        scaling: float,
        dropout: float = 0.0,
        init: bool | str | None = True,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = features(base_layer)
        self.base_layer = base_layer
        device, dtype = self.weight.device, adapter_dtype(self.weight.dtype)
        # drawn on the CPU, so that a seed gives the same adapter on every device
        self.lora_A = _zero_linear(self.in_features, r, dtype)
        self.lora_B = _zero_linear(r, self.out_features, dtype)
        self.dropout = nn.Dropout(dropout)
        self.scaling = scaling
        if init is not None:
            init_lora(self, init)
        self.lora_A.to(device)
        self.lora_B.to(device)

    @property
    def r(self) -> int:
        return self.lora_A.out_features

    @property
    def weight(self) -> Tensor:  # some models look at their layers' weight
        return cast(Tensor, self.base_layer.weight)

    @property
    def bias(self) -> Tensor | None:
        return cast(Tensor | None, self.base_layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base_layer(x)
        a, b = self.lora_A.weight.to(x.dtype), self.lora_B.weight.to(x.dtype)
        update = F.linear(F.linear(self.dropout(x), a), b)  # (..., in) -> (..., r) -> (..., out)
        return y + (update * self.scaling).to(y.dtype)

    def extra_repr(self) -> str:
        return f"r={self.r}, scaling={self.scaling:g}"


@torch.no_grad()
def init_lora(layer: LoRALinear, init: bool | str) -> None:
    """Draw the initial ``A`` and ``B``: for a seed the same numbers as HF PEFT.

    Args:
        layer: On the CPU.
        init: True or "kaiming": ``A`` from U(-1/sqrt(in), 1/sqrt(in)), ``B`` zero; "gaussian":
            ``A`` from N(0, 1/r^2), ``B`` zero; False: both random, for tests: the model no longer
            starts from the base.
    """
    layer.lora_A.reset_parameters()
    layer.lora_B.reset_parameters()
    if init is False:
        return
    if init == "gaussian":
        nn.init.normal_(layer.lora_A.weight, std=1 / layer.r)
    else:
        nn.init.kaiming_uniform_(layer.lora_A.weight, a=math.sqrt(5))  # as loralib and HF PEFT do
    nn.init.zeros_(layer.lora_B.weight)  # so that training starts from the base model


def _zero_linear(inputs: int, outputs: int, dtype: torch.dtype) -> nn.Linear:
    with torch.device("meta"):  # no draw from the random generator
        layer = nn.Linear(inputs, outputs, bias=False)
    layer.weight = nn.Parameter(torch.zeros(outputs, inputs, device="cpu", dtype=dtype))
    return layer


def is_conv1d(layer: nn.Module) -> bool:
    """Whether ``layer`` is GPT-2's Conv1D: a linear layer whose weight is (in, out)."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")


def is_linear(layer: nn.Module) -> bool:
    """Whether LoRA can act on ``layer``."""
    return isinstance(layer, nn.Linear) or is_conv1d(layer)


def features(layer: Any) -> tuple[int, int]:
    """Return the input and output features of a linear layer."""
    if is_conv1d(layer):
        inputs, outputs = layer.weight.shape
        return inputs, outputs
    return layer.in_features, layer.out_features
