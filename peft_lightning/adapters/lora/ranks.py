"""Ranks that no update can have: above the width of a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from peft_lightning.messages import UserError

if TYPE_CHECKING:
    from peft_lightning.adapters.lora.method import LoRA


def require_ranks_fit(adapter: LoRA, model: nn.Module) -> None:
    """Check that no rank is above both widths of its layer.

    A rank above the smaller one is more than an update can have, and is common where the keys are
    narrower than the queries; above both it is a mistake.

    Args:
        adapter: The adapter.
        model: The model that it is attached to.

    Raises:
        UserError: If one is; names the layer and its widths.
    """
    for name, layer in adapter.layers(model).items():
        rank, widths = adapter.rank(name), (layer.in_features, layer.out_features)
        if rank > max(widths):
            option = "r" if rank == adapter.r else "rank_pattern:"
            both = f"{widths[0]:,} and {widths[1]:,}"
            raise UserError(
                f"{option} {rank:,} is above both widths of {name}, {both}: an update has at most "
                f"rank {min(widths):,}"
            )
