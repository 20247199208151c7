"""``python -m peft_lightning resize``: a LoRA adapter of lower rank."""

from __future__ import annotations

from pathlib import Path


def resize(
    ckpt_path: str,
    out: str,
    /,
    *,
    rank: int | None = None,
    retain: float | None = None,
    overwrite: bool = False,
) -> None:
    """Reduce the rank of a LoRA adapter by truncated SVD of its updates.

    Args:
        ckpt_path: Folder of a LoRA adapter or checkpoint, or OWNER/NAME@REVISION on the hub.
        out: Folder to write; HF PEFT reads it too.
        rank: Largest rank of a layer.
        retain: Instead of a rank, the share of each update's squared norm to retain, such as 0.95:
            each layer gets the lowest rank that retains it.
        overwrite: Replace the adapter that is in the folder.
    """
    from peft_lightning.adapters.folder import read_adapter
    from peft_lightning.adapters.lora.arithmetic import reduce_rank, updates_of
    from peft_lightning.adapters.lora.updates_folder import (
        ADAPTER,
        common_base,
        common_tokenizer,
        describe_updates,
        has_transposed_layers,
        parameters_of,
        require_rank_or_share,
        write_updates,
    )
    from peft_lightning.files import require_output
    from peft_lightning.hub import adapter_folder

    require_rank_or_share(rank, retain)
    require_output(out, ADAPTER, [ckpt_path], overwrite)
    folder = adapter_folder(ckpt_path)
    adapter, tensors, facts = read_adapter(folder)
    reduced = {
        name: reduce_rank(b, a, rank, retain)
        for name, (b, a) in updates_of(adapter, tensors).items()
    }
    found = {name: factors for name, (factors, _) in reduced.items()}
    made_of = {"method": "resize", "rank": rank, "retain": retain, "adapter": Path(ckpt_path).name}
    own = {**common_base([facts]), "made_of": made_of}
    transposed, files = has_transposed_layers(folder), common_tokenizer([folder])
    write_updates(out, found, own, transposed, parameters_of(folder), files)
    print(describe_updates(out, found, {name: share for name, (_, share) in reduced.items()}))
