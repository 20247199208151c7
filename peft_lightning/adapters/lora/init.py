"""Initial values of a LoRA layer: random, or from a decomposition of the base's weight."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_lightning.messages import UserError

RANDOM = ("kaiming", "gaussian", "orthogonal")
DECOMPOSITIONS = ("olora", "pissa", "pissa_niter_4")  # the last with any number of iterations
INITS = (*RANDOM, *DECOMPOSITIONS)


def is_decomposition(init: bool | str | None) -> bool:
    """Whether ``init`` decomposes the base's weight, so that the initial update is subtracted."""
    return isinstance(init, str) and (
        init in ("olora", "pissa") or re.fullmatch(r"pissa_niter_\d+", init) is not None
    )


def is_known(init: Any) -> bool:
    """Whether ``init`` is a value of ``init_lora_weights`` that ``init_lora`` implements."""
    return isinstance(init, bool) or init in RANDOM or is_decomposition(init)


@torch.no_grad()
def init_lora(layer: Any, init: bool | str) -> None:
    """Set the initial ``A`` and ``B`` of a LoRA layer, for a seed the same numbers as HF PEFT.

    Args:
        layer: A ``LoRALinear`` whose ``A`` and ``B`` are on the CPU.
        init: True or "kaiming": ``A`` from U(-1/sqrt(in), 1/sqrt(in)), ``B`` zero; "gaussian":
            ``A`` from N(0, 1/r^2), ``B`` zero; "orthogonal": both random, in subspaces that are
            orthogonal to each other, so that ``B A`` is zero; False: both random, for tests, so
            that the model does not start as the base; otherwise an ``init`` of ``decompose``.

    Raises:
        UserError: If the layer's rank does not fit ``init``.
    """
    a, b = layer.lora_A, layer.lora_B
    a.reset_parameters()
    b.reset_parameters()
    if init is False:
        return
    nn.init.zeros_(b.weight)  # so that training starts from the base model
    if b.bias is not None:
        nn.init.zeros_(b.bias)
    if init == "gaussian":
        nn.init.normal_(a.weight, std=1 / layer.r)
    elif init == "orthogonal":
        _orthogonal(a.weight, b.weight)
    elif is_decomposition(init):
        found_a, found_b = decompose(layer.weight_matrix(), layer.r, layer.scaling, str(init))
        a.weight.copy_(found_a)
        b.weight.copy_(found_b)
    else:
        nn.init.kaiming_uniform_(a.weight, a=math.sqrt(5))  # as loralib and HF PEFT do


def decompose(weight: Tensor, r: int, scaling: float, init: str) -> tuple[Tensor, Tensor]:
    """Return ``A``, (r, in), and ``B``, (out, r), of the principal part of a weight.

    Args:
        weight: (out, in).
        r: Its rank; what is above the smaller side of the weight is zero, as there is no more.
        scaling: Factor on ``B A``.
        init: "olora": ``B A`` is the first ``r`` columns of Q times rows of R of the QR
            decomposition (Büyükakyüz 2024, arXiv:2406.01775); "pissa": ``scaling B A`` is the
            ``r`` largest singular values with their vectors (Meng et al. 2024, arXiv:2404.02948);
            "pissa_niter_4": the same by a randomised decomposition with 4 iterations.

    Raises:
        UserError: If the weight is quantised.
    """
    if not weight.is_floating_point():
        raise UserError(
            f"init_lora_weights {init!r} needs the base's weight, which is quantised: load the "
            "base without quantization, or leave init_lora_weights out"
        )
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    rank = min(r, *weight.shape)  # HF PEFT's tensors have no more
    if init == "olora":
        q, upper = torch.linalg.qr(wide)
        return with_zeros(upper[:rank], q[:, :rank], r)
    if init == "pissa":
        u, s, vh = torch.linalg.svd(wide, full_matrices=False)
        u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    else:
        u, s, v = torch.svd_lowrank(wide, rank, niter=int(init.rpartition("_")[2]))
        vh = v.T
    root = (s / scaling).sqrt()
    return with_zeros(root[:, None] * vh, u * root, r)


def with_zeros(a: Tensor, b: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Return ``A`` (rank, in) and ``B`` (out, rank) with zeros up to rank ``r``."""
    more = r - len(a)
    return F.pad(a, (0, 0, 0, more)), F.pad(b, (0, more))


def _orthogonal(a: Tensor, b: Tensor) -> None:
    """Draw ``A`` (r, in) and ``B`` (out, r) over two halves of an orthogonal basis of R^r."""
    r = a.shape[0]
    if r % 2:
        raise UserError(f"init_lora_weights 'orthogonal' needs an even rank, got r {r}")
    q, _ = torch.linalg.qr(torch.randn(r, r, dtype=a.dtype))
    a.copy_((torch.randn(a.shape[1], r // 2, dtype=a.dtype) @ q[0::2]).T / 10)
    b.copy_(torch.randn(r // 2, b.shape[0], dtype=b.dtype).T @ q[1::2] / 10)
