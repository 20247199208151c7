"""Outputs that the backward pass computes again instead of keeping them.

The output of a norm or of an activation is cheap to compute from tensors that autograd keeps
anyway. The function that makes such an output notes a ``Recipe`` for it; the function that reads
the output looks it up and keeps the recipe's tensors instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class Recipe(NamedTuple):
    """How to compute a tensor again.

    Args:
        function: Returns the tensor, bit for bit, from ``sources``.
        sources: Tensors that autograd keeps in any case.
    """

    function: Callable[..., Tensor]
    sources: tuple[Tensor, ...]

    def detached(self) -> list[Tensor]:
        """Return the sources without their graphs."""
        return [source.detach() for source in self.sources]


_RECIPES = WeakTensorKeyDictionary()  # an entry lives as long as its tensor


def set_recipe(output: Tensor, function: Callable[..., Tensor], *sources: Tensor) -> None:
    """Let the readers of ``output`` keep ``sources`` and compute ``function(*sources)``."""
    _RECIPES[output] = Recipe(function, sources)


def find_recipe(tensor: Tensor) -> Recipe | None:
    """Return the recipe of ``tensor``, or None if it has to be kept as it is."""
    recipe: Recipe | None = _RECIPES.get(tensor)
    return recipe
