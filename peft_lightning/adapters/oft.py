"""OFT: rotations of what goes into linear layers (arXiv:2306.07280, arXiv:2506.19847)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_lightning.adapters.hooked_layers import HookedAdapter
from peft_lightning.adapters.lora.layers import features
from peft_lightning.messages import UserError


@dataclass(frozen=True)
class OFT(HookedAdapter):
    """Rotates the inputs of linear layers, block by block; only the rotations are trained.

    ``y = W R x`` with an orthogonal, block-diagonal ``R`` from Cayley's transform of a
    skew-symmetric matrix (Qiu et al. 2023, section 3), which starts at zero, ``R`` at the identity:
    training starts from the base model, and angles between the neurons' weights stay as they are.

    Args:
        oft_block_size: Width of a block; 0 if ``r`` is given. In a layer whose width is no multiple
            of it, the nearest divisor, as in HF PEFT.
        r: Number of blocks instead; 0 if ``oft_block_size`` is given.
        module_dropout: Share of the blocks that do not rotate in a step of training, in [0, 1).
        use_cayley_neumann: Whether Cayley's inverse is a Neumann series, faster and a little off
            orthogonality, or exact.
        num_cayley_neumann_terms: Terms of the series, at least 2.
        block_share: Whether all blocks of a layer have one rotation.
        target_modules: Layers to act on, as for a LoRA.
        exclude_modules: Layers to leave out, likewise.
        layers_to_transform: Numbers of the decoder layers to act on, counted from 0; all if None.
        layers_pattern: Name of the module list that these numbers count, such as ``layers``.

    Raises:
        UserError: If a value is out of its range; from ``attach``, if a layer is GPT-2's Conv1D,
            for which HF PEFT has no OFT.
    """

    peft_type: ClassVar[str] = "OFT"
    key: ClassVar[str] = "oft_R.weight"
    learning_rate: ClassVar[float] = 1e-3
    hf_defaults: ClassVar[dict[str, Any]] = {
        **dict.fromkeys(["exclude_modules", "layers_pattern", "layers_to_transform"]),
        **{"bias": "none", "block_share": False, "coft": False, "eps": 6e-5},
        **{"fan_in_fan_out": False, "init_weights": True, "module_dropout": 0.0},
        **{"modules_to_save": None, "num_cayley_neumann_terms": 5, "oft_block_size": 32, "r": 0},
        **{"target_modules": None, "use_cayley_neumann": True},
    }
    hf_ignored: ClassVar[frozenset[str]] = HookedAdapter.hf_ignored | {"eps", "init_weights"}

    oft_block_size: int = 32
    r: int = 0
    module_dropout: float = 0.0
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: int = 5
    block_share: bool = False
    target_modules: list[str] | str | None = "all-linear"
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None

    def __post_init__(self) -> None:
        self._require(self.oft_block_size >= 0, "oft_block_size", "at least 2, or 0 beside r")
        self._require(self.oft_block_size != 1, "oft_block_size", "at least 2: one cannot turn")
        self._require(self.r >= 0, "r", "at least 1, or 0 beside oft_block_size")
        if (self.r == 0) == (self.oft_block_size == 0):
            raise UserError(
                f"give r or oft_block_size and 0 for the other, as r times oft_block_size is a "
                f"layer's width: got r {self.r} and oft_block_size {self.oft_block_size}"
            )
        self._require(0 <= self.module_dropout < 1, "module_dropout", "in [0, 1)")
        self._require(self.num_cayley_neumann_terms >= 2, "num_cayley_neumann_terms", "at least 2")
        self.targets(nn.Module())

    def block_size(self, width: int) -> int:
        """Return the width of a block in a layer of ``width`` inputs."""
        if self.r:
            return width // _nearest_divisor(width, self.r)
        return _nearest_divisor(width, self.oft_block_size)

    def new_tensor(self, model: nn.Module, name: str, dtype: torch.dtype) -> Tensor:
        width = features(model.get_submodule(name))[0]
        size = self.block_size(width)
        if size < 2:
            raise UserError(
                f"r {self.r}: {name} has {width} inputs, and blocks of one cannot turn; give an r "
                f"of at most {width // 2}"
            )
        blocks = 1 if self.block_share else width // size
        return torch.zeros(blocks, size * (size - 1) // 2, dtype=dtype)

    def new_dropout(self) -> nn.Module | None:
        return BlockDropout(self.module_dropout) if self.module_dropout else None

    def changed_input(self, layer: Any, x: Tensor) -> Tensor:
        turn = self.dropped(layer, self._turns(self.tensor(layer)))
        size = turn.shape[-1]
        blocks = x.reshape(*x.shape[:-1], -1, size)
        # the identity apart: near 1 a bfloat16 has steps of 1/128
        turned = torch.einsum("...nk,nkc->...nc", blocks, turn.to(x.dtype).expand(*_like(blocks)))
        return x + turned.reshape(x.shape).to(x.dtype)

    def _turns(self, tensor: Tensor) -> Tensor:
        """Return ``R - 1`` of each block, (blocks, size, size), for rows ``x R``.

        The series and the exact transform turn in opposite directions, as in HF PEFT.
        """
        with torch.autocast(tensor.device.type, enabled=False):
            size = round((1 + (1 + 8 * tensor.shape[1]) ** 0.5) / 2)
            rows, columns = torch.triu_indices(size, size, 1, device=tensor.device)
            upper = tensor.new_zeros(len(tensor), size, size)
            upper[:, rows, columns] = tensor
            skew = upper - upper.mT
            if not self.use_cayley_neumann:
                one = torch.eye(size, device=tensor.device, dtype=tensor.dtype)
                return torch.linalg.solve(one + skew, -2 * skew, left=False)
            return _series(skew, self.num_cayley_neumann_terms)

    def merged_parameters(self, model: nn.Module) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, layer in self.layers(model).items():
            turn = self._turns(self.tensor(layer))
            weight = layer.weight.to(torch.promote_types(layer.weight.dtype, torch.float32))
            blocks = weight.reshape(len(weight), -1, turn.shape[-1])
            turned = torch.einsum("onc,nkc->onk", blocks, turn.to(weight).expand(*_like(blocks)))
            found[f"{name}.weight"] = weight + turned.reshape(weight.shape)
        return found


class BlockDropout(nn.Module):
    """Leaves a random share of the blocks of a layer out of a step: they do not turn.

    Args:
        p: The share, in [0, 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, turn: Tensor) -> Tensor:
        """Return ``turn``, (blocks, size, size), with some blocks zero; one block stays."""
        if not self.training or len(turn) == 1:
            return turn
        left_out = torch.randperm(len(turn))[: int(self.p * len(turn))]
        kept = torch.ones(len(turn), 1, 1)
        kept[left_out] = 0
        return turn * kept.to(turn)


def _series(skew: Tensor, terms: int) -> Tensor:
    """Return ``2 Q + 2 Q^2 + ... + Q^n``, Cayley's transform of ``Q`` without its identity.

    The power ``n`` is ``terms - 1``, but 3 for three terms, as in HF PEFT.
    """
    if terms == 2:
        return 2 * skew
    power = skew @ skew
    total = 2 * skew + 2 * power
    for _ in range(3, terms - 1):
        power = power @ skew
        total = total + 2 * power
    return total + power @ skew


def _nearest_divisor(width: int, wanted: int) -> int:
    """Return the divisor of ``width`` next to ``wanted``, the smaller of two; at most ``width``."""
    divisors = [n for n in range(1, width + 1) if width % n == 0]
    return min(divisors, key=lambda n: (abs(n - wanted), n))


def _like(blocks: Tensor) -> tuple[int, int, int]:
    """Return the shape of the rotations of ``blocks``, (..., blocks, size)."""
    return blocks.shape[-2], blocks.shape[-1], blocks.shape[-1]
