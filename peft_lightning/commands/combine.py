"""``python -m peft_lightning combine``: one LoRA adapter of several."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any


def combine(
    out: str,
    /,
    *adapters: str,
    method: str = "cat",
    rank: int | None = None,
    density: float = 0.5,
    seed: int = 0,
) -> None:
    """Combine LoRA adapters of one base into one, such as ``combine OUT a=0.7 b=0.3``.

    Args:
        out: Folder to write; HF PEFT reads it too.
        adapters: FOLDER=WEIGHT of each; FOLDER alone weighs 1.
        method: cat (the exact weighted sum, its rank the sum of the ranks), svd (the same cut to
            a rank), ties, dare_linear, dare_ties, magnitude_prune, or hf_linear (HF PEFT's
            "linear", which is not the sum of the updates).
        rank: Of the result, for all but cat and hf_linear; the largest of the adapters' if null.
        density: Share of each update's values that ties, dare and magnitude_prune keep.
        seed: Of what dare drops.
    """
    from peft_lightning.adapters.folder import read_adapter
    from peft_lightning.adapters.lora import arithmetic
    from peft_lightning.hub import adapter_folder

    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    parts: list[tuple[str, float]] = [_weighted(text) for text in adapters]
    folders = [adapter_folder(folder) for folder, _ in parts]
    read = [read_adapter(folder) for folder in folders]
    facts = common_base([folder for folder, _ in parts], [r[2] for r in read])
    updates = [arithmetic.updates_of(adapter, tensors) for adapter, tensors, _ in read]
    weights = [weight for _, weight in parts]
    found, retained = arithmetic.combine(updates, weights, method, rank, density, seed)
    facts["made_of"] = {"method": method, "adapters": [[Path(f).name, w] for f, w in parts]}
    save(out, found, facts, any(map(is_transposed, folders)))
    print(summary(out, found, retained))


def save(out: str, updates: Any, facts: dict[str, Any], fan_in_fan_out: bool = False) -> None:
    """Write updates as an adapter's folder, whole or not at all."""
    from peft_lightning.adapters.base import as_json
    from peft_lightning.adapters.folder import CONFIG_FILE, FACTS_FILE, FORMAT_VERSION, write_files
    from peft_lightning.adapters.lora.arithmetic import as_lora
    from peft_lightning.commands.merge import require_replaceable
    from peft_lightning.files import sealed_folder

    require_replaceable(Path(out), CONFIG_FILE, "adapter")
    lora, tensors = as_lora(updates)
    config = {
        **lora.hf_defaults,
        **lora.hf_options(),
        "base_model_name_or_path": facts["base_model"],
        "fan_in_fan_out": fan_in_fan_out,
    }
    own = {"format_version": FORMAT_VERSION, "peft_type": lora.peft_type}
    texts = {CONFIG_FILE: as_json(config), FACTS_FILE: as_json({**own, **facts})}
    with sealed_folder(out) as folder:
        write_files(folder, lora.tensor_file, tensors, texts)


def is_transposed(folder: Path) -> bool:
    """Whether an adapter's layers are GPT-2's, by ``fan_in_fan_out`` of its config."""
    from peft_lightning.adapters.folder import CONFIG_FILE, read_json

    return bool(read_json(folder / CONFIG_FILE).get("fan_in_fan_out"))


def summary(out: str, updates: Any, retained: dict[str, float]) -> str:
    """Return ranks and what was retained, in a line."""
    ranks = sorted({a.shape[0] for _, a in updates.values()})
    shown = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    text = f"{out}: {len(updates)} layers, rank {shown}"
    lowest = min(retained, key=lambda name: retained[name])
    if retained[lowest] < 1:
        mean = sum(retained.values()) / len(retained)
        text += f"; retained energy {mean:.2%} on average, {retained[lowest]:.2%} in {lowest}"
    return text


def common_base(folders: list[str], facts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the adapters say of their base.

    Raises:
        ValueError: If they are of different ones.
    """
    known = [(f, x) for f, x in zip(folders, facts, strict=True) if x["base_fingerprint"]]
    for folder, fact in known[1:]:
        if fact["base_fingerprint"] != known[0][1]["base_fingerprint"]:
            raise ValueError(
                f"{folder} was trained on another base model than {known[0][0]}: "
                f"{fact['base_model']} and {known[0][1]['base_model']}"
            )
    names = [fact["base_model"] for fact in facts if fact["base_model"]]
    return {
        "base_model": names[0] if names else None,
        "base_fingerprint": known[0][1]["base_fingerprint"] if known else None,
    }


def _weighted(text: str) -> tuple[str, float]:
    folder, equals, weight = text.rpartition("=")
    if not equals or Path(text).is_dir():  # runs/lr=0.1 is a folder's name
        return text, 1.0
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{text} must be FOLDER=WEIGHT, and {weight!r} is no number")
    return folder, number
