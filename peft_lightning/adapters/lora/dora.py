"""DoRALinear: LoRA whose rows have a trained length of their own (arXiv:2402.09353)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peft_lightning.adapters.lora.layers import LoRALinear
from peft_lightning.messages import UserError


class DoRALinear(LoRALinear):
    """``y = m / |V| * V x + bias`` with ``V = W + scaling * B A``, row by row.

    ``|V|`` is the length of each row of ``V`` and counts as a constant in the gradient (Liu et
    al. 2024, section 4.3). It comes from ``|W|``, ``W A^T`` and ``A A^T``; ``B A``, as large as
    the weight, is never built. ``V x`` is computed as by ``LoRALinear``, by whichever path. The
    dropout of the update leaves ``W x`` alone.

    The trained ``lora_magnitude_vector`` (out,) starts at ``|V|``, and so the layer at its base.
    Arguments as for ``LoRALinear``; without ``init`` it is zero too, to be loaded.

    Raises:
        UserError: If the base's weight is no matrix of numbers, such as a quantised one.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        r: int,
        scaling: float,
        dropout: float = 0.0,
        init: bool | str | None = True,
    ) -> None:
        super().__init__(base_layer, r, scaling, dropout, init)
        if not self.weight.is_floating_point() or self.weight.ndim != 2:
            raise UserError(
                f"DoRA needs the base's weight, and that of {type(base_layer).__name__} is "
                f"{tuple(self.weight.shape)} {self.weight.dtype}: load the base without "
                "quantisation, or set use_dora to false"
            )
        zeros = self.weight.new_zeros(self.out_features, dtype=self.lora_A.weight.dtype)
        self.lora_magnitude_vector = nn.Parameter(zeros if init is None else self.row_norms())

    @torch.no_grad()
    def row_norms(self) -> Tensor:
        """Return the length of each row of ``W + scaling * B A``, (out,), at least in float32."""
        with torch.autocast(self.weight.device.type, enabled=False):
            a, b = (x.detach() for x in self.factors())
            weight = self.weight_matrix().to(a.dtype)
            own = torch.linalg.vector_norm(weight, dim=1).square()
            cross = ((weight @ a.T) * b).sum(1)  # <W, B A> of each row
            update = ((b @ (a @ a.T)) * b).sum(1)  # |B A|^2
            squares = own + 2 * self.scaling * cross + self.scaling**2 * update
            return squares.clamp(min=0).sqrt()

    def gain(self) -> Tensor:
        """Return the factor on each row of ``W + scaling * B A``, (out,); finite for rows of 0."""
        norms = self.row_norms()
        return self.lora_magnitude_vector / norms.clamp(min=torch.finfo(norms.dtype).tiny)

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), "lora_magnitude_vector": self.lora_magnitude_vector}

    def forward(self, x: Tensor) -> Tensor:
        y, gain = super().forward(x), self.gain()
        if self.bias is None:
            return (y * gain).to(y.dtype)
        return (y * gain + self.bias * (1 - gain)).to(y.dtype)
