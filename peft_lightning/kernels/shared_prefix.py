"""The tokens that all sequences of a flat batch begin with, such as a system prompt, only once.

As attention is causal, the states of a common prefix are the same in every sequence: they are
computed as a sequence of their own, which the others see (``prefix_len``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peft_lightning.kernels.isolation import isolation_error

WORTH = 32  # tokens that have to be saved; a smaller batch is hardly faster
PARTS = {"input_ids", "labels", "position_ids", "cu_seq_lens", "seq_lens"}  # of a flat batch
OF_TOKENS = ("input_ids", "labels", "position_ids", "loss_weights")  # (1, T) each


def share_prefix(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a flat batch whose common prefix is its first sequence, and is seen by all others.

    Args:
        batch: ``input_ids``, ``labels``, ``position_ids`` (1, T), ``cu_seq_lens`` (S + 1,),
            ``seq_lens``, and maybe ``loss_weights`` (1, T).

    Returns:
        The same with ``prefix_len``; ``batch`` itself if fewer than ``WORTH`` tokens are saved, or
        if there is more in it, whose meaning is not known. A token with a label is not part of a
        prefix, nor is the last token of a sequence.
    """
    if batch.keys() - {"loss_weights"} != PARTS:
        return batch
    lens: list[int] = list(batch["seq_lens"])
    n = _common_prefix(batch, lens) if len(lens) > 1 else 0
    if n * (len(lens) - 1) < WORTH:
        return batch
    own = (batch["position_ids"][0] >= n).nonzero().squeeze(1)  # of each sequence after the prefix
    places = torch.cat([torch.arange(n, device=own.device), own])
    shared = {name: batch[name][:, places] for name in OF_TOKENS if name in batch}
    lens = [n, *(length - n for length in lens)]
    ends = torch.tensor([0, *lens], device=own.device).cumsum(0)
    return {**shared, "cu_seq_lens": ends.int(), "seq_lens": lens, "prefix_len": n}


def prefix_error(forward: Any, vocab_size: int, device: torch.device) -> str | None:
    """Check that sequences after a shared prefix are as if each began with it.

    Args:
        forward: Flat batch without labels -> (1, T, any) outputs, in eval mode.
        vocab_size: Token ids are drawn below this.
        device: Where the batch is made.

    Returns:
        None if all is well, else what is wrong.
    """
    generator = torch.Generator().manual_seed(1)
    prefix = torch.randint(0, vocab_size, (WORTH,), generator=generator).to(device)

    def with_prefix(batch: dict[str, Any]) -> Any:
        parts = [torch.cat([prefix, x]) for x in batch["input_ids"][0].split(batch["seq_lens"])]
        lens = [len(part) for part in parts]
        ids = torch.cat(parts)[None]
        shared = share_prefix(
            {
                "input_ids": ids,
                "labels": torch.full_like(ids, -100),
                "position_ids": torch.cat([torch.arange(n, device=device) for n in lens])[None],
                "cu_seq_lens": torch.tensor([0, *lens], device=device).cumsum(0).int(),
                "seq_lens": lens,
            }
        )
        return forward({name: part for name, part in shared.items() if name != "labels"})

    return isolation_error(with_prefix, vocab_size, device)


def _common_prefix(batch: dict[str, Any], lens: list[int]) -> int:
    """Return the number of tokens, none of them labelled, that all sequences begin with."""
    shortest = min(lens)
    starts = batch["cu_seq_lens"][:-1].long()
    places = starts[:, None] + torch.arange(shortest, device=starts.device)  # (S, shortest)
    ids: Tensor = batch["input_ids"][0, places]
    unlabelled: Tensor = batch["labels"][0, places] == -100
    common = (ids == ids[0]).all(0) & unlabelled.all(0)
    return min(int(common.cumprod(0).sum()), shortest - 1)
