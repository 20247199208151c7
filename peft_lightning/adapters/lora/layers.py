"""LoRALinear: a frozen linear layer with a trainable low-rank update (arXiv:2106.09685)."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_lightning.adapters.base import adapter_dtype
from peft_lightning.adapters.lora.autograd import Projection, lora_linear
from peft_lightning.adapters.lora.grouped_projections import ProjectionGroup
from peft_lightning.adapters.lora.init import init_lora, is_decomposition
from peft_lightning.kernels.native.stored import stored_forward


class LoRALinear(nn.Module):
    """A frozen linear layer with an update: ``base_layer(x) + scaling * B(A(dropout(x)))``.

    This is Hu et al. 2021, equation 3: the weight ``W`` stays frozen, and of its update
    ``scaling * B A`` only the two factors are trained, ``r * (in_features + out_features)``
    numbers. ``B`` starts at zero, so the layer starts as its base.

    ``A`` and ``B`` are float32 (float64 over a float64 base). The update is computed in the dtype
    of ``x``: over a bfloat16 or float16 base the two small matrices are cast down, never the input
    up. Under autocast its dtype applies, as for any linear layer. The output has the dtype of
    the base layer's output.

    Args:
        base_layer: The frozen ``nn.Linear`` or GPT-2's ``Conv1D``, (..., in_features) ->
            (..., out_features). Shared, not copied.
        r: Rank of the update; ``A`` has shape (r, in_features), ``B`` (out_features, r), also over
            a ``Conv1D``.
        scaling: Factor on the update, ``lora_alpha / r`` (section 4.1).
        dropout: Probability of zeroing an input feature of the update, in [0, 1).
        init: How ``init_lora`` draws ``A`` and ``B``; None leaves both zero, to be loaded.
        bias: Whether ``B`` has a trained bias, (out_features,), scaled like the update
            (``lora_bias``).
    """

    def __init__(
        self,
        base_layer: nn.Module,
        r: int,
        scaling: float,
        dropout: float = 0.0,
        init: bool | str | None = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = features(base_layer)
        self.base_layer = base_layer
        device, dtype = self.weight.device, adapter_dtype(self.weight.dtype)
        # drawn on the CPU, so that a seed gives the same adapter on every device
        self.lora_A = _zero_linear(self.in_features, r, dtype)
        self.lora_B = _zero_linear(r, self.out_features, dtype, bias)
        self.dropout = nn.Dropout(dropout)
        self.scaling = scaling
        self.group: ProjectionGroup | None = None
        self.initial_A: Tensor | None
        self.initial_B: Tensor | None
        self.register_buffer("initial_A", None, persistent=False)  # see subtract_initial_update
        self.register_buffer("initial_B", None, persistent=False)
        if init is not None:
            init_lora(self, init)
        self.lora_A.to(device)
        self.lora_B.to(device)
        if is_decomposition(init):
            self.subtract_initial_update()

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, (..., in_features) -> (..., out_features).

        ``lora_linear`` computes it where it gives the same numbers with less memory: not with
        dropout, over a layer that is no plain linear one, or under ``torch.compile``.
        """
        dtype = _compute_dtype(x)
        if not self._can_fuse(dtype):
            return self._forward_by_modules(x)
        if self.group is not None:
            return self.group.output(self, x, dtype)
        return lora_linear(x.to(dtype), [self.projection()])[0]

    def _forward_by_modules(self, x: Tensor) -> Tensor:
        y = self.base_layer(x)
        a, b = self.lora_A.weight.to(x.dtype), self.lora_B.weight.to(x.dtype)
        update = F.linear(F.linear(self.dropout(x), a), b)  # (..., in) -> (..., r) -> (..., out)
        if self.lora_B.bias is not None:
            update = update + self.lora_B.bias.to(x.dtype)
        if self.initial_A is not None and self.initial_B is not None:
            a, b = self.initial_A.to(x.dtype), self.initial_B.to(x.dtype)
            update = update - F.linear(F.linear(x, a), b)
        return y + (update * self.scaling).to(y.dtype)

    def projection(self) -> Projection:
        """Return the arguments of ``lora_linear`` for this layer."""
        return Projection(self.weight_matrix(), self.total_bias(), *self.factors(), self.scaling)

    @property
    def r(self) -> int:
        return self.lora_A.out_features

    @property
    def weight(self) -> Tensor:  # some models look at their layers' weight
        return cast(Tensor, self.base_layer.weight)

    @property
    def bias(self) -> Tensor | None:
        return cast(Tensor | None, self.base_layer.bias)

    def weight_matrix(self) -> Tensor:
        """Return the base's weight as (out_features, in_features)."""
        return self.weight.T if is_conv1d(self.base_layer) else self.weight

    def total_bias(self) -> Tensor | None:
        """Return the bias of base and update together, (out_features,)."""
        own = self.lora_B.bias
        if own is None:
            return self.bias
        return self.scaling * own if self.bias is None else self.bias + self.scaling * own

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return ``A`` and ``B`` of the whole update, with rank 2r if an initial one is subtracted.

        Returns:
            (r, in_features) and (out_features, r); or ``A`` over the initial ``A``, and ``B``
            beside the negated initial ``B``.
        """
        a, b = self.lora_A.weight, self.lora_B.weight
        if self.initial_A is None or self.initial_B is None:
            return a, b
        return torch.cat([a, self.initial_A]), torch.cat([b, -self.initial_B], 1)

    def subtract_initial_update(self) -> None:
        """Subtract the current update from now on, so that the layer's output is its base's.

        OLoRA and PiSSA subtract it from the base's weight; here the weight stays as it is.
        """
        self.initial_A = self.lora_A.weight.detach().clone()
        self.initial_B = self.lora_B.weight.detach().clone()

    def load_factors(self, a: Tensor, b: Tensor) -> None:
        """Copy the ``factors`` of another such layer, if an initial update is subtracted."""
        if self.initial_A is None or self.initial_B is None:
            return
        for own, given in ((self.lora_A.weight, a[: self.r]), (self.lora_B.weight, b[:, : self.r])):
            own.detach().copy_(given)
        self.initial_A.copy_(a[self.r :])
        self.initial_B.copy_(-b[:, self.r :])

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a file holds, by their names within the layer."""
        a, b = self.factors()
        found = {"lora_A.weight": a, "lora_B.weight": b}
        if self.lora_B.bias is not None:
            found["lora_B.bias"] = self.lora_B.bias
        return found

    @property
    def path(self) -> str:
        """How the output is computed: plain (module by module), fused, or grouped with others."""
        known = type(self.base_layer) is nn.Linear or is_conv1d(self.base_layer)
        if not known and stored_forward(self.base_layer) is None:
            return "plain"  # such as a quantised layer on a GPU, which does its product itself
        if self.base_layer._forward_hooks or self.base_layer._forward_pre_hooks:
            return "plain"
        return "grouped" if self.group is not None else "fused"

    def _can_fuse(self, dtype: torch.dtype) -> bool:
        """Whether ``lora_linear`` computes what the modules would compute one by one."""
        autocasts = torch.is_autocast_enabled(self.weight.device.type)
        return bool(
            self.path != "plain"
            and (autocasts or dtype == self.weight.dtype or stored_forward(self.base_layer))
            and not (self.training and self.dropout.p > 0)
            and not self.weight.requires_grad
            and not torch.compiler.is_compiling()
        )

    def extra_repr(self) -> str:
        return f"r={self.r}, scaling={self.scaling:g}"


def is_linear(layer: nn.Module) -> bool:
    """Whether ``layer`` is a linear layer, which LoRALinear can be put over."""
    return isinstance(layer, nn.Linear) or is_conv1d(layer)


def is_conv1d(layer: nn.Module) -> bool:
    """Whether ``layer`` is GPT-2's Conv1D, a linear layer with weight (in, out)."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")


def features(layer: Any) -> tuple[int, int]:
    """Return ``in_features`` and ``out_features`` of a linear layer."""
    if is_conv1d(layer):
        inputs, outputs = layer.weight.shape
        return inputs, outputs
    return layer.in_features, layer.out_features


def _compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which a linear layer computes: that of ``x``, or autocast's."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _zero_linear(inputs: int, outputs: int, dtype: torch.dtype, bias: bool = False) -> nn.Linear:
    """Return a linear layer of zeros on the CPU, made without a draw from the generator."""
    with torch.device("meta"):
        layer = nn.Linear(inputs, outputs, bias=bias)
    for name, parameter in list(layer.named_parameters()):
        zeros = torch.zeros(parameter.shape, device="cpu", dtype=dtype)
        setattr(layer, name, nn.Parameter(zeros))
    return layer
