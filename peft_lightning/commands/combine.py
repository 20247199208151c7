"""``python -m peft_lightning combine``: several LoRA adapters become one."""

from __future__ import annotations

import math
from pathlib import Path

from peft_lightning.messages import UserError


def combine(
    out: str,
    /,
    *adapters: str,
    method: str = "cat",
    rank: int | None = None,
    density: float = 0.5,
    seed: int = 0,
    base_model: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
) -> None:
    """Combine LoRA adapters of one base model, such as ``combine OUT a=0.7 b=0.3``.

    Args:
        out: Folder to write; HF PEFT reads it too.
        adapters: FOLDER=WEIGHT of each adapter; FOLDER alone has weight 1.
        method: cat (the exact weighted sum, whose rank is the sum of the ranks), svd (that sum,
            truncated to a rank), ties and dare_ties (signs are elected by the weighted values, as
            in mergekit), hf_ties and hf_dare_ties (by the values before weighting, as HF PEFT's
            ties_svd), dare_linear, magnitude_prune, or hf_linear (HF PEFT's "linear", which is not
            the sum of the updates).
        rank: Rank of the result for all methods but cat and hf_linear; without, the largest rank
            of the adapters.
        density: Share of each update's values that ties, dare and magnitude_prune keep.
        seed: Seed of the values that dare drops.
        base_model: Base model that the adapters have in common: hub id, folder or GGUF file. Each
            is checked against its layers; needed where the folders name different ones.
        trust_remote_code: Whether code that comes with the model may run.
        revision: Branch, tag or commit of a hub id.
        overwrite: Replace the adapter that is in the folder.
    """
    from peft_lightning.adapters.folder import read_adapter
    from peft_lightning.adapters.lora import arithmetic
    from peft_lightning.adapters.lora.same_base import require_base_of_all, require_one_base
    from peft_lightning.adapters.lora.updates_folder import (
        ADAPTER,
        common_base,
        common_tokenizer,
        describe_updates,
        has_transposed_layers,
        parameters_of,
        write_updates,
    )
    from peft_lightning.base_model.resolve import brings_tokenizer
    from peft_lightning.files import require_output
    from peft_lightning.hub import adapter_folder

    if rank is not None and rank < 1:
        raise UserError(f"rank must be at least 1, got {rank}")
    parts: list[tuple[str, float]] = [_weighted(text) for text in adapters]
    require_output(out, ADAPTER, [base_model, *(folder for folder, _ in parts)], overwrite)
    folders = [adapter_folder(folder) for folder, _ in parts]
    read = [read_adapter(folder) for folder in folders]
    named = [folder for folder, _ in parts]
    of_each = [r[2] for r in read]
    updates = [arithmetic.updates_of(adapter, tensors) for adapter, tensors, _ in read]
    facts = common_base(of_each)
    if base_model is None:
        require_one_base(named, of_each, updates)
    else:
        options = {"trust_remote_code": trust_remote_code, "revision": revision}
        found_base = require_base_of_all(base_model, named, of_each, updates, **options)
        facts |= {"base_model": base_model, "base_fingerprint": found_base}
    weights = [weight for _, weight in parts]
    found, retained = arithmetic.combine(updates, weights, method, rank, density, seed)
    if "prompts" not in facts and any("prompts" in r[2] for r in read):
        print("these adapters were trained with different prompts, and the result has no own ones")
    facts["made_of"] = {"method": method, "adapters": [[Path(f).name, w] for f, w in parts]}
    if not (tokenizer := common_tokenizer(folders)) and any(map(brings_tokenizer, folders)):
        print("these adapters have different tokenizers, and the result has none: that of the base")
    transposed = any(map(has_transposed_layers, folders))
    parameters = set().union(*map(parameters_of, folders))
    write_updates(out, found, facts, transposed, parameters, tokenizer)
    print(describe_updates(out, found, retained))


def _weighted(text: str) -> tuple[str, float]:
    folder, equals, weight = text.rpartition("=")
    if not equals or Path(text).is_dir():  # runs/lr=0.1 is a folder's name
        return text, 1.0
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{text} must be FOLDER=WEIGHT, and {weight!r} is no number")
    return folder, number
