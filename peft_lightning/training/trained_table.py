"""What a run trains: its parameters by kind of module, as numbers and as a table of text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from torch import nn

from peft_lightning.base_model.quantization import count_numbers
from peft_lightning.training.compute_report import path_of


@dataclass
class TrainedGroup:
    """The trainable parameters of modules that differ in the number of their layer alone.

    Args:
        pattern: Their name, with ``*`` for the number.
        tensors: How many tensors they are.
        parameters: How many numbers.
        size: Their bytes.
        paths: How the layers are computed.
    """

    pattern: str
    tensors: int = 0
    parameters: int = 0
    size: int = 0
    paths: dict[str, None] = field(default_factory=dict)


def trained_groups(model: nn.Module) -> list[TrainedGroup]:
    """Return the trainable parameters by module pattern.

    Args:
        model: With the adapter attached; layer numbers are folded into ``*``.
    """
    groups: dict[str, TrainedGroup] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            pattern = re.sub(r"\.\d+\.", ".*.", name).removesuffix(".weight")
            pattern = re.sub(r"\.lora_[AB]$", "", pattern)
            group = groups.setdefault(pattern, TrainedGroup(pattern))
            group.paths[path_of(model, name)] = None
            group.tensors += 1
            group.parameters += parameter.numel()
            group.size += parameter.numel() * parameter.element_size()
    return list(groups.values())


def trained_table(model: nn.Module, verbose: bool = False) -> str:
    """Return a table of the trainable parameters by module pattern: tensors, share and bytes.

    Args:
        model: With the adapter attached; layer numbers are folded into ``*``.
        verbose: Whether to say how each layer is computed.
    """
    groups = trained_groups(model)
    total = sum(count_numbers(p) for p in model.parameters())
    whole = TrainedGroup(
        "all",
        sum(group.tensors for group in groups),
        sum(group.parameters for group in groups),
        sum(group.size for group in groups),
    )
    width = max(map(len, [*(group.pattern for group in groups), "trained"]))
    rows = [
        f"{'trained':<{width}}  tensors   parameters        share        bytes" + "  path" * verbose
    ]
    rows += [
        f"{g.pattern:<{width}}  {g.tensors:>7}  {g.parameters:>11,}  {g.parameters / total:>10.4%}"
        f"  {g.size:>11,}  {', '.join(g.paths) if verbose else ''}".rstrip()
        for g in [*groups, whole]
    ]
    megabytes = f"{whole.size / 2**20:,.1f} MiB"
    rows.append(f"of {total:,} parameters; an adapter file has about {megabytes}")
    return "\n".join(rows)
