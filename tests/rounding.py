"""How far two computations of the same numbers may be apart, from the arithmetic alone.

A number is rounded by at most u = eps / 2 of its size. The sum of n products, in whatever order and
blocks a processor takes, is off by less than l sqrt(n) u of the size of its terms, save with a
probability of 2 exp(-l^2 / 2) (Higham and Mary, SIAM J. Sci. Comput. 41, 2019): 3e-8 for l = 6. Two
computations are both off, so they differ by up to l sqrt(n) eps. Each product of a chain adds its
own error to that of those before it. Errors are measured against the largest element of a tensor,
as the terms of a small element need not be small.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

L = 6
# of tiny.py's models: sums of 48 terms (intermediate_size); in each of 2 layers a norm, queries,
# scores, their softmax, values, output, a norm, gate and down-projection follow on each other, then
# come the last norm and the head
TERMS, FORWARD = 48, 2 * 9 + 2
BACKWARD = 3 * FORWARD  # each product again for the gradient of its input, and of its weight


def rounding_error(
    dtype: torch.dtype, terms: int = TERMS, products: int = FORWARD, steps: int = 1
) -> float:
    """Return by how much of its size a number may differ.

    Args:
        dtype: The coarsest in which the numbers are computed.
        terms: The terms of each sum.
        products: How many products follow on each other, each on the results of the one before.
        steps: How many times over, in a training of so many steps of plain gradient descent.
    """
    return L * terms**0.5 * products * steps * torch.finfo(dtype).eps


def assert_near(
    found: Any, expected: Any, *, dtype: torch.dtype | None = None, **arithmetic: int
) -> None:
    """Assert that tensors, or dicts or lists of them, are equal but for rounding.

    Args:
        found: Tensors.
        expected: As many, of the same shapes.
        dtype: The coarsest in which they were computed; that of ``found`` if not given.
        arithmetic: ``terms``, ``products`` and ``steps`` of ``rounding_error``; those of a tiny
            model's logits if not given.
    """
    if isinstance(expected, Mapping):
        assert found.keys() == expected.keys()
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, Sequence):
        for one, other in zip(found, expected, strict=True):
            assert_near(one, other, dtype=dtype, **arithmetic)
        return
    if not isinstance(expected, Tensor) or not expected.is_floating_point():
        assert found == expected
        return
    error = rounding_error(dtype or found.dtype, **arithmetic)
    atol = error * expected.detach().abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def assert_as_exact(
    found: Sequence[Tensor], other: Sequence[Tensor], exact: Sequence[Tensor]
) -> None:
    """Assert that a computation is as far from the exact numbers as another in the same dtype.

    For gradients whose condition nobody knows: a softmax of large scores magnifies a rounding, for
    both alike. Their errors are two draws of one size, so a factor of ten is allowed; numbers
    rounded to bfloat16 on the way would be off by 65,000 times as much as float32's.
    """
    tensors = list(zip(found, other, exact, strict=True))
    scales = [want.abs().max().item() or 1.0 for _, _, want in tensors]
    own, others = (
        max(
            (row[i].double() - row[2]).abs().max().item() / scale
            for row, scale in zip(tensors, scales, strict=True)
        )
        for i in (0, 1)
    )
    least = rounding_error(other[0].dtype, products=1)
    assert own <= 10 * max(others, least), f"{own:.1e} off, the other {others:.1e}"


def assert_first_adam_step(found: Tensor, expected: Tensor, gradient: Tensor, rate: float) -> None:
    """Assert that weights are equal after AdamW's first step, which moves them by rate * sign.

    A gradient that is off by d moves a weight by up to 2 rate, where it is as small as d.
    """
    coarsest = max((found.dtype, expected.dtype), key=lambda dtype: torch.finfo(dtype).eps)
    noise = rounding_error(coarsest, products=BACKWARD) * gradient.abs().max()
    moved = rate * (2 * noise / gradient.abs()).clamp(max=2).nan_to_num(2)
    allowed = moved + 2 * torch.finfo(coarsest).eps * expected.abs()
    assert ((found.double() - expected.double()).abs() <= allowed).all()
