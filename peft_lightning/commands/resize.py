"""``python -m peft_lightning resize``: a LoRA adapter of lower rank."""

from __future__ import annotations

from pathlib import Path


def resize(
    ckpt_path: str, out: str, /, *, rank: int | None = None, retain: float | None = None
) -> None:
    """Reduce the rank of a LoRA adapter to the largest singular values of its updates.

    Args:
        ckpt_path: Folder of a LoRA adapter or checkpoint, or a hub's OWNER/NAME@REVISION.
        out: Folder to write; HF PEFT reads it too.
        rank: New rank of every layer, at most.
        retain: Or the share of each update's squared norm to retain, such as 0.95: each layer
            gets the lowest rank that does.
    """
    require_cut(rank, retain)
    from peft_lightning.adapters.folder import read_adapter
    from peft_lightning.adapters.lora.arithmetic import reduce_rank, updates_of
    from peft_lightning.commands.combine import common_base, is_transposed, save, summary
    from peft_lightning.hub import adapter_folder

    folder = adapter_folder(ckpt_path)
    adapter, tensors, facts = read_adapter(folder)
    reduced = {
        name: reduce_rank(b, a, rank, retain)
        for name, (b, a) in updates_of(adapter, tensors).items()
    }
    found = {name: factors for name, (factors, _) in reduced.items()}
    made_of = {"method": "resize", "rank": rank, "retain": retain, "adapter": Path(ckpt_path).name}
    own = {**common_base([ckpt_path], [facts]), "made_of": made_of}
    save(out, found, own, is_transposed(folder))
    print(summary(out, found, {name: share for name, (_, share) in reduced.items()}))


def require_cut(rank: int | None, retain: float | None) -> None:
    """Raise ValueError unless one of a rank and a share of energy is given, in its range."""
    if (rank is None) == (retain is None):
        raise ValueError("give either --rank or --retain")
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    if retain is not None and not 0 < retain <= 1:
        raise ValueError(f"retain must be above 0 and at most 1, got {retain}")
