"""LoRALinear: a frozen linear layer with a trainable low-rank update (arXiv:2106.09685)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_lightning.adapters.base import adapter_dtype
from peft_lightning.adapters.lora.autograd import Projection, lora_linear
from peft_lightning.adapters.lora.init import init_lora, is_decomposition
from peft_lightning.kernels.native.stored import stored_forward

if TYPE_CHECKING:
    from peft_lightning.adapters.lora.shared_input import SharedInput


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
        bias: Whether ``B`` has a trained bias, (out,), scaled like the update (``lora_bias``).
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
        self.shared_input: SharedInput | None = None
        self.initial_A: Tensor | None
        self.initial_B: Tensor | None
        self.register_buffer("initial_A", None, persistent=False)  # see fold_initial
        self.register_buffer("initial_B", None, persistent=False)
        if init is not None:
            init_lora(self, init)
        self.lora_A.to(device)
        self.lora_B.to(device)
        if is_decomposition(init):
            self.fold_initial()

    @property
    def r(self) -> int:
        return self.lora_A.out_features

    @property
    def weight(self) -> Tensor:  # some models look at their layers' weight
        return cast(Tensor, self.base_layer.weight)

    @property
    def bias(self) -> Tensor | None:
        return cast(Tensor | None, self.base_layer.bias)

    def matrix(self) -> Tensor:
        """Return the base's weight as (out, in)."""
        return self.weight.T if is_conv1d(self.base_layer) else self.weight

    def fold_initial(self) -> None:
        """Subtract the update as it is now, for good: the layer computes what its base does.

        What OLoRA and PiSSA do to the base's weight, without touching it.
        """
        self.initial_A = self.lora_A.weight.detach().clone()
        self.initial_B = self.lora_B.weight.detach().clone()

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return ``A`` and ``B`` of the whole update, a subtracted initial one appended."""
        a, b = self.lora_A.weight, self.lora_B.weight
        if self.initial_A is None or self.initial_B is None:
            return a, b
        return torch.cat([a, self.initial_A]), torch.cat([b, -self.initial_B], 1)

    def load_initial(self, a: Tensor, b: Tensor) -> None:
        """Copy what ``factors`` returns of another such layer, if a part of it is subtracted."""
        if self.initial_A is None or self.initial_B is None:
            return
        for own, given in ((self.lora_A.weight, a[: self.r]), (self.lora_B.weight, b[:, : self.r])):
            own.detach().copy_(given)
        self.initial_A.copy_(a[self.r :])
        self.initial_B.copy_(-b[:, self.r :])

    def tensors(self) -> dict[str, Tensor]:
        """Return what is trained by its name within the layer, as a file holds it."""
        a, b = self.factors()
        found = {"lora_A.weight": a, "lora_B.weight": b}
        if self.lora_B.bias is not None:
            found["lora_B.bias"] = self.lora_B.bias
        return found

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
        return bool(
            self.path != "plain"
            and (autocasts or dtype == self.weight.dtype or stored_forward(self.base_layer))
            and not (self.training and self.dropout.p > 0)
            and not self.weight.requires_grad
            and not torch.compiler.is_compiling()
        )

    def _plain(self, x: Tensor) -> Tensor:
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
        """Return what ``lora_linear`` takes of this layer."""
        return Projection(self.matrix(), self.whole_bias(), *self.factors(), self.scaling)

    def whole_bias(self) -> Tensor | None:
        """Return the bias of base and update together, (out,)."""
        own = self.lora_B.bias
        if own is None:
            return self.bias
        return self.scaling * own if self.bias is None else self.bias + self.scaling * own

    @property
    def path(self) -> str:
        """How it is computed: plain (module by module), fused, or grouped with others."""
        known = type(self.base_layer) is nn.Linear or is_conv1d(self.base_layer)
        if not known and stored_forward(self.base_layer) is None:
            return "plain"  # such as a quantised layer on a GPU, which does its product itself
        if self.base_layer._forward_hooks or self.base_layer._forward_pre_hooks:
            return "plain"
        return "grouped" if self.shared_input is not None else "fused"

    def extra_repr(self) -> str:
        return f"r={self.r}, scaling={self.scaling:g}"


def _dtype_of_products(x: Tensor) -> torch.dtype:
    """Return the dtype in which a linear layer computes: that of ``x``, or autocast's."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _zero_linear(inputs: int, outputs: int, dtype: torch.dtype, bias: bool = False) -> nn.Linear:
    with torch.device("meta"):  # no draw from the random generator
        layer = nn.Linear(inputs, outputs, bias=bias)
    for name, parameter in list(layer.named_parameters()):
        zeros = torch.zeros(parameter.shape, device="cpu", dtype=dtype)
        setattr(layer, name, nn.Parameter(zeros))
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
