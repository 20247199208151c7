"""LoRALinear: a frozen linear layer with a trainable low-rank update (arXiv:2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_lightning.adapters.base import adapter_dtype
from peft_lightning.adapters.lora_function import Projection, lora_linear

SHARED_INPUTS = (  # names of layers that read the same input in models of transformers
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
)


class LoRALinear(nn.Module):
    """``y = base_layer(x) + scaling * B(A(dropout(x)))``, with ``base_layer`` frozen.

    Dtypes: ``A`` and ``B`` are kept in float32 (float64 over a float64 base). The update is
    computed in the dtype of ``x``: over a bfloat16 or float16 base the two small matrices are
    cast down, never the input up; for a float32 ``x`` everything is float32, as in HF PEFT.
    Under autocast its dtype rules, as for any linear layer. The update is added in the dtype of
    the base layer's output, which is the dtype of ``y``.

    Computed by ``lora_linear`` where that gives the same; module by module with dropout, over a
    layer that is no plain linear one, and under ``torch.compile``.

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
        self.shared_input: SharedInput | None = None
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
        dtype = _dtype_of_products(x)
        if not self._is_fast(dtype):
            return self._plain(x)
        if self.shared_input is not None:
            return self.shared_input.result(self, x, dtype)
        return lora_linear(x.to(dtype), [self.projection()])[0]

    def _is_fast(self, dtype: torch.dtype) -> bool:
        """Whether ``lora_linear`` computes what the plain modules would."""
        autocasts = torch.is_autocast_enabled(self.weight.device.type)
        return (
            self.path != "plain"
            and (autocasts or dtype == self.weight.dtype)
            and not (self.training and self.dropout.p > 0)
            and not self.weight.requires_grad
            and not torch.compiler.is_compiling()
        )

    def _plain(self, x: Tensor) -> Tensor:
        y = self.base_layer(x)
        a, b = self.lora_A.weight.to(x.dtype), self.lora_B.weight.to(x.dtype)
        update = F.linear(F.linear(self.dropout(x), a), b)  # (..., in) -> (..., r) -> (..., out)
        return y + (update * self.scaling).to(y.dtype)

    def projection(self) -> Projection:
        """Return what ``lora_linear`` takes of this layer."""
        weight = self.weight.T if is_conv1d(self.base_layer) else self.weight
        a, b = self.lora_A.weight, self.lora_B.weight
        return Projection(weight, self.bias, a, b, self.scaling)

    @property
    def path(self) -> str:
        """How it is computed: plain (module by module), fused, or grouped with others."""
        if type(self.base_layer) is not nn.Linear and not is_conv1d(self.base_layer):
            return "plain"  # such as a quantised layer, which does its product itself
        if self.base_layer._forward_hooks or self.base_layer._forward_pre_hooks:
            return "plain"
        return "grouped" if self.shared_input is not None else "fused"

    def extra_repr(self) -> str:
        return f"r={self.r}, scaling={self.scaling:g}"


class SharedInput:
    """Layers that read the same input: the first one called computes the results of all.

    Args:
        layers: Two or more, in the order in which they are called.
    """

    def __init__(self, layers: Sequence[LoRALinear]) -> None:
        self.layers = list(layers)
        self._input: tuple[Tensor, int, bool] | None = None
        self._waiting: dict[LoRALinear, Tensor] = {}
        for layer in self.layers:
            layer.shared_input = self

    def result(self, layer: LoRALinear, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the output of ``layer`` for ``x``, computed in ``dtype``."""
        if not self._is_for(layer, x):
            if self._waiting:  # they do not read the same input after all
                self.dissolve()
                return lora_linear(x.to(dtype), [layer.projection()])[0]
            found = lora_linear(x.to(dtype), [member.projection() for member in self.layers])
            self._waiting = dict(zip(self.layers, found, strict=True))
            self._input = (x, _version(x), torch.is_grad_enabled())
        result = self._waiting.pop(layer)
        if not self._waiting:
            self._input = None
        return result

    def _is_for(self, layer: LoRALinear, x: Tensor) -> bool:
        return (
            layer in self._waiting
            and self._input is not None
            and self._input[0] is x
            and self._input[1:] == (_version(x), torch.is_grad_enabled())
        )

    def dissolve(self) -> None:
        """Let each layer compute its own output from now on."""
        for layer in self.layers:
            layer.shared_input = None
        self._input, self._waiting = None, {}


def _version(x: Tensor) -> int:
    """Return how often ``x`` was changed in place; inference tensors do not count."""
    return 0 if x.is_inference() else x._version


def group_by_input(model: nn.Module) -> None:
    """Let the adapted layers that usually share an input be computed together."""
    for module in model.modules():
        for names in SHARED_INPUTS:
            layers = [getattr(module, name, None) for name in names]
            found = [layer for layer in layers if isinstance(layer, LoRALinear)]
            if len(found) > 1 and all(layer.path == "fused" for layer in found):
                SharedInput(found)


def _dtype_of_products(x: Tensor) -> torch.dtype:
    """Return the dtype in which a linear layer computes: that of ``x``, or autocast's."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


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
