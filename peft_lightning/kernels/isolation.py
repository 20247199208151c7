"""Check that the sequences of a flat batch do not see each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def isolation_error(
    forward: Any, vocab_size: int, device: torch.device, coarse: bool = False
) -> str | None:
    """Check that the sequences of a flat batch do not see each other.

    Runs two short sequences end to end, then again with other tokens in the first one, and
    requires the second one's outputs not to move; then requires them to equal those of the
    second sequence alone, which also finds positions that do not restart.

    Args:
        forward: Flat batch without labels -> (1, T, any) outputs, in eval mode.
        vocab_size: Token ids are drawn below this.
        device: Where the batch is made.
        coarse: Whether the model rounds as much as one of half precision, whatever its dtype.

    Returns:
        None if all is well, else what is wrong.
    """
    generator = torch.Generator().manual_seed(0)
    first, other, second = (
        torch.randint(0, vocab_size, (n,), generator=generator) for n in (5, 5, 7)
    )

    def run(*sequences: Tensor) -> Tensor:
        lens = [len(s) for s in sequences]
        batch = {
            "input_ids": torch.cat(sequences)[None].to(device),
            "position_ids": torch.cat([torch.arange(n) for n in lens])[None].to(device),
            "cu_seq_lens": torch.tensor([0, *lens]).cumsum(0).int().to(device),
            "seq_lens": lens,
        }
        with torch.no_grad():
            return forward(batch)[0, -len(second) :]

    flat, moved, alone = run(first, second), run(other, second), run(second)
    half = coarse or flat.dtype in (torch.bfloat16, torch.float16)
    tolerance = (0.05 if half else 1e-3) * max(1.0, alone.abs().max().item())
    leak = (flat - moved).abs().max().item()
    if leak > tolerance:
        return f"other tokens in one sequence moved the outputs of the next by {leak:.2g}"
    gap = (flat - alone).abs().max().item()
    if gap > tolerance:
        return f"a sequence's outputs differ by {gap:.2g} between a flat batch and on its own"
    return None
