"""Computed LoRA updates (combined, resized, extracted) as an adapter's folder."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from peft_lightning.adapters.base import as_json
from peft_lightning.adapters.folder import (
    CONFIG_FILE,
    FACTS_FILE,
    FORMAT_VERSION,
    Texts,
    read_json,
    write_files,
)
from peft_lightning.adapters.lora.arithmetic import as_lora
from peft_lightning.adapters.lora.hf_parameters import layers_as_parameters, with_parameters
from peft_lightning.base_model.resolve import tokenizer_files_in
from peft_lightning.files import Kind, require_replaceable, sealed_files, sealed_folder
from peft_lightning.messages import UserError

Updates = dict[str, tuple[Tensor, Tensor]]


def _files(folder: Path) -> Collection[str] | None:
    sealed = sealed_files(folder)
    if sealed is None or FACTS_FILE not in sealed or "trainer_state.pt" in sealed:
        return None  # of another program, or a checkpoint, from which training continues
    return sealed


ADAPTER = Kind("adapter", _files)


def write_updates(
    out: str,
    updates: Updates,
    facts: dict[str, Any],
    fan_in_fan_out: bool = False,
    parameters: Collection[str] = (),
    tokenizer: Texts | None = None,
) -> None:
    """Write the updates of a LoRA as an adapter's folder, in one atomic step.

    Args:
        out: The folder to write; an adapter in it is replaced.
        updates: For each layer the factors ``B``, (out_features, r), and ``A``, (r, in_features),
            the scaling included.
        facts: Content of ``peft_lightning.json``, with ``base_model`` and ``base_fingerprint``.
        fan_in_fan_out: Whether the layers are GPT-2's, whose weights are transposed.
        parameters: Names of the layers that HF PEFT would take for experts.
        tokenizer: Files of the tokenizer, by name.

    Raises:
        UserError: If ``out`` holds something else than an adapter.
    """
    require_replaceable(Path(out), CONFIG_FILE, "adapter")
    lora, tensors = as_lora(updates)
    config = {
        **lora.hf_defaults,
        **lora.hf_options(),
        "base_model_name_or_path": facts["base_model"],
        "fan_in_fan_out": fan_in_fan_out,
    }
    taken = [name for name in updates if name in parameters]
    config = with_parameters(config, taken, [name for name in updates if name not in taken])
    own = {"format_version": FORMAT_VERSION, "peft_type": lora.peft_type}
    texts = {CONFIG_FILE: as_json(config), FACTS_FILE: as_json({**own, **facts})}
    with sealed_folder(out) as folder:
        write_files(folder, lora.tensor_file, tensors, {**(tokenizer or {}), **texts})


def require_rank_or_share(rank: int | None, retain: float | None) -> None:
    """Raise UserError unless exactly one of a rank and a share to retain is given, in its range.

    Args:
        rank: At least 1.
        retain: In (0, 1].
    """
    if (rank is None) == (retain is None):
        raise UserError("give either --rank or --retain")
    if rank is not None and rank < 1:
        raise UserError(f"rank must be at least 1, got {rank}")
    if retain is not None and not 0 < retain <= 1:
        raise UserError(f"retain must be above 0 and at most 1, got {retain}")


def has_transposed_layers(folder: Path) -> bool:
    """Whether the layers of an adapter are GPT-2's, by ``fan_in_fan_out`` of its config."""
    return bool(read_json(folder / CONFIG_FILE).get("fan_in_fan_out"))


def parameters_of(folder: Path) -> set[str]:
    """Return the names of the layers that an adapter's config has as parameters."""
    return layers_as_parameters(read_json(folder / CONFIG_FILE))


def common_base(facts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return ``base_model`` and ``base_fingerprint`` of adapters of one base.

    Those that were trained with the same prompts pass them on, as "prompts".

    Args:
        facts: The facts of each of them, as ``read_facts`` returns them.
    """
    known = [fact["base_fingerprint"] for fact in facts if fact["base_fingerprint"]]
    names = [fact["base_model"] for fact in facts if fact["base_model"]]
    prompts = [fact.get("prompts") for fact in facts]
    return {
        "base_model": names[0] if names else None,
        "base_fingerprint": known[0] if known else None,
        **({"prompts": prompts[0]} if prompts[0] and all(p == prompts[0] for p in prompts) else {}),
    }


def common_tokenizer(folders: Sequence[Path]) -> dict[str, bytes]:
    """Return the files of the tokenizer that adapters' folders bring; none if they differ."""
    found = [files for folder in folders if (files := tokenizer_files_in(folder))]
    return found[0] if found and all(files == found[0] for files in found) else {}


def describe_updates(out: str, updates: Updates, retained: Mapping[str, float]) -> str:
    """Return number of layers, ranks and retained energy in one line.

    Args:
        out: The folder.
        updates: As in ``write_updates``.
        retained: The share of the squared norm that each layer's update has retained.
    """
    ranks = sorted({a.shape[0] for _, a in updates.values()})
    shown = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    text = f"{out}: {len(updates)} layers, rank {shown}"
    lowest = min(retained, key=lambda name: retained[name])
    if retained[lowest] < 1:
        mean = sum(retained.values()) / len(retained)
        text += f"; retained energy {mean:.2%} on average, {retained[lowest]:.2%} in {lowest}"
    return text
