"""MiSS: one small matrix for all shards of a linear layer's inputs (arXiv:2409.15371)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_lightning.adapters.hooked_layers import HookedAdapter
from peft_lightning.adapters.lora.layers import features
from peft_lightning.messages import UserError

VARIANTS = ("bat", "mini")


@dataclass(frozen=True)
class MiSS(HookedAdapter):
    """Adds to linear layers a matrix for the sum of their inputs' shards; it starts at zero.

    ``y = W x + D^T s`` with ``s`` the sum of ``x``'s shards of ``r`` features each (Kang and Yin
    2024): half the numbers of a LoRA of the rank, and one small product.

    Args:
        r: Width of a shard, the rank of the update, at least 1 and at most a layer's inputs. The
            last shard is filled with zeros.
        init_weights: True; ``mini``: ``D`` repeats itself after ``mini_r`` outputs; ``bat``: the
            update of each square block is ``W_block D + D``; False: random, for tests.
        mini_r: Outputs after which ``mini`` repeats itself; a divisor of each layer's outputs.
        miss_dropout: Dropout on the inputs of the update, in [0, 1).
        target_modules: Layers to act on, as for a LoRA.
        exclude_modules: Layers to leave out, likewise.
        layers_to_transform: Numbers of the decoder layers to act on, counted from 0; all if None.
        layers_pattern: Name of the module list that these numbers count, such as ``layers``.

    Raises:
        UserError: If a value is out of its range; from ``attach``, if a layer is GPT-2's Conv1D,
            for which HF PEFT has no MiSS, or its shape does not suit ``r`` or ``mini_r``.
    """

    peft_type: ClassVar[str] = "MISS"
    key: ClassVar[str] = "miss_block"
    learning_rate: ClassVar[float] = 2e-4
    hf_defaults: ClassVar[dict[str, Any]] = {
        **dict.fromkeys(["exclude_modules", "layers_pattern", "layers_to_transform"]),
        **{"bias": "none", "init_weights": True, "mini_r": 1, "miss_dropout": 0.0},
        **{"modules_to_save": None, "r": 64, "target_modules": None},
    }

    r: int = 64
    init_weights: bool | str = True
    mini_r: int = 1
    miss_dropout: float = 0.0
    target_modules: list[str] | str | None = "all-linear"
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None

    def __post_init__(self) -> None:
        self._require(self.r >= 1, "r", "at least 1")
        self._require(self.mini_r >= 1, "mini_r", "at least 1")
        self._require(0 <= self.miss_dropout < 1, "miss_dropout", "in [0, 1)")
        known = isinstance(self.init_weights, bool) or self.init_weights in VARIANTS
        self._require(known, "init_weights", "true, false, mini or bat")
        self.targets(nn.Module())

    def new_tensor(self, model: nn.Module, name: str, dtype: torch.dtype) -> Tensor:
        inputs, outputs = features(model.get_submodule(name))
        if self.r > inputs:
            raise UserError(f"r {self.r}: {name} has {inputs} inputs, and r is at most that")
        if self.init_weights == "bat":
            if inputs % self.r or outputs % self.r:
                raise UserError(
                    f"init_weights bat, r {self.r}: {name} is {outputs} x {inputs}, and r has to "
                    "divide both"
                )
            return torch.zeros(outputs // self.r, self.r, self.r, dtype=dtype)
        if self.init_weights == "mini" and outputs % self.mini_r:
            raise UserError(
                f"mini_r {self.mini_r}: {name} has {outputs} outputs, and mini_r has to divide them"
            )
        columns = self.mini_r if self.init_weights == "mini" else outputs
        tensor = torch.zeros(self.r, columns, dtype=dtype)
        return nn.init.kaiming_uniform_(tensor, a=5**0.5) if not self.init_weights else tensor

    def new_dropout(self) -> nn.Module | None:
        return nn.Dropout(self.miss_dropout) if self.miss_dropout else None

    def changed_output(self, layer: Any, x: Tensor, y: Tensor) -> Tensor:
        x = self.dropped(layer, x)
        if self.init_weights == "bat":
            return y + F.linear(x, self._update(layer).to(x.dtype)).to(y.dtype)
        x = F.pad(x, (0, -x.shape[-1] % self.r))
        total = x.reshape(*x.shape[:-1], -1, self.r).sum(-2)
        return y + (total @ self._columns(layer).to(x.dtype)).to(y.dtype)

    def _columns(self, layer: Any) -> Tensor:
        """Return ``D``, (r, out_features)."""
        tensor = self.tensor(layer)
        repeats = features(layer)[1] // tensor.shape[1]
        return tensor.repeat(1, repeats) if self.init_weights == "mini" else tensor

    def _update(self, layer: Any) -> Tensor:
        """Return the update of the weight, (out_features, in_features), in the tensor's dtype."""
        tensor, (inputs, outputs) = self.tensor(layer), features(layer)
        if self.init_weights != "bat":
            shards = -(-inputs // self.r)
            return self._columns(layer).T.repeat(1, shards)[:, :inputs]
        weight = layer.weight.detach()
        if not weight.is_floating_point():
            raise UserError(
                "init_weights bat multiplies the base's weights, which are quantised: load the "
                "base without quantization, or give another init_weights"
            )
        blocks = weight.to(tensor.dtype).reshape(-1, self.r, inputs // self.r, self.r)
        blocks = blocks.permute(2, 0, 1, 3)  # (in / r, out / r, r, r)
        return (blocks @ tensor + tensor).permute(1, 2, 0, 3).reshape(outputs, inputs)

    def merged_parameters(self, model: nn.Module) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, layer in self.layers(model).items():
            wide = torch.promote_types(layer.weight.dtype, torch.float32)
            found[f"{name}.weight"] = layer.weight.to(wide) + self._update(layer).to(wide)
        return found
