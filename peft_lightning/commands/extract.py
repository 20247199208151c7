"""``python -m peft_lightning extract``: a LoRA of what full fine-tuning has changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peft_lightning.base_model.weights import WeightFiles


def extract(
    tuned: str,
    out: str,
    /,
    *,
    base_model: str | None = None,
    rank: int | None = None,
    retain: float | None = None,
    ignore_other_changes: bool = False,
    allow_base_mismatch: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> None:
    """Write a LoRA adapter of the difference between a fine-tuned model and its base.

    Both are read tensor by tensor. Each linear layer that differs gets the factors of its
    difference that retain most; the output embedding too, unless it is the input embedding.

    Args:
        tuned: The fine-tuned model: a folder, a checkpoint of full fine-tuning, or a hub id.
        out: Folder to write; HF PEFT reads it too.
        base_model: Base model, if not the one that a checkpoint names: hub id or folder.
        rank: Rank of every layer, at most.
        retain: Or the share of each difference's squared norm to retain, such as 0.95: each layer
            gets the lowest rank that does.
        ignore_other_changes: Go on if other tensors (embeddings, norms, biases) differ too; they
            are listed and their change is lost.
        allow_base_mismatch: Go on even if the checkpoint was trained on another base model.
        trust_remote_code: Whether code that comes with the models may run.
        revision: Branch, tag or commit of the base's hub id.
    """
    from peft_lightning.commands.resize import require_cut

    require_cut(rank, retain)
    from peft_lightning.adapters.folder import read_facts, require_base
    from peft_lightning.adapters.lora.arithmetic import factorise
    from peft_lightning.adapters.lora.layers import is_conv1d
    from peft_lightning.commands.combine import save

    facts = read_facts(tuned)
    if not (name := base_model or facts["base_model"]):
        raise ValueError(f"{tuned} does not name its base model: give it with --base_model")
    base = _opened(name, trust_remote_code, revision)
    other = _opened(tuned, trust_remote_code, None)
    fingerprint = base.fingerprint()
    if not allow_base_mismatch and facts["base_fingerprint"]:
        require_base(tuned, facts, fingerprint)
    layers, rest = _differing(name, base, tuned, other)
    if rest and not ignore_other_changes:
        raise ValueError(
            f"a LoRA cannot hold {len(rest)} of the tensors in which {tuned} differs from {name}: "
            f"{_listed(rest)}. --ignore_other_changes extracts the rest without them"
        )
    if not layers:
        raise ValueError(f"no linear layer of {tuned} differs from {name}: nothing to extract")
    width = max(map(len, layers))
    print(f"{'layer':<{width}} {'rank':>5} {'norm':>9} {'of the base':>12} {'retained':>9}")
    updates, retained, squares, transposed = {}, {}, {}, False
    for layer in layers:
        weight = base.of(f"{layer}.weight").read().double()
        delta = other.of(f"{layer}.weight").read().double() - weight
        if not delta.isfinite().all():
            raise ValueError(f"{layer}.weight has values that are not finite")
        squares[layer] = float(delta.square().sum())
        if is_conv1d(base.model.get_submodule(layer)):
            transposed, delta = True, delta.T
        (b, a), retained[layer] = factorise(delta, rank, retain)
        updates[layer] = b.float(), a.float()
        norm = float(weight.norm())
        share = squares[layer] ** 0.5 / norm if norm else float("inf")
        print(
            f"{layer:<{width}} {a.shape[0]:>5} {squares[layer] ** 0.5:>9.4f} {share:>12.3%} "
            f"{retained[layer]:>9.2%}",
            flush=True,
        )
    total = sum(squares[n] * retained[n] for n in layers) / sum(squares.values())
    made_of = {"method": "extract", "rank": rank, "retain": retain, "model": Path(tuned).name}
    own = {"base_model": name, "base_fingerprint": fingerprint, "made_of": made_of}
    save(out, updates, {**own, "retained_energy": total, "left_out": rest}, transposed)
    count = sum(b.numel() + a.numel() for b, a in updates.values())
    print(
        f"{out}: {len(layers)} layers, {count:,} parameters; retained energy {total:.2%} in total, "
        f"{min(retained.values()):.2%} at least"
    )
    if rest:
        print(f"left out: {_listed(rest)}")


def _opened(name: str, trust_remote_code: bool, revision: str | None) -> WeightFiles:
    from peft_lightning.base_model.weights import NotStreamableError, open_weights

    try:
        return open_weights(name, trust_remote_code=trust_remote_code, revision=revision)
    except NotStreamableError as reason:
        raise ValueError(
            f"{name} cannot be read tensor by tensor, {reason}: give a folder with the model's "
            "safetensors files"
        ) from None


def _differing(
    name: str, base: WeightFiles, tuned: str, other: WeightFiles
) -> tuple[list[str], dict[str, float]]:
    """Return the linear layers that differ, and the other tensors that do with by how much.

    Raises:
        ValueError: If the two are not of one architecture and one shape.
    """
    import torch

    from peft_lightning.adapters.lora.layers import is_linear

    if type(base.model) is not type(other.model):
        kinds = type(other.model).__name__, type(base.model).__name__
        raise ValueError(f"{tuned} is a {kinds[0]} and {name} a {kinds[1]}: not its base")
    ours, theirs = (
        {n: tuple(p.shape) for n, p in files.model.named_parameters()} for files in (base, other)
    )
    if wrong := sorted(n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)):
        first = f"{wrong[0]} is {theirs.get(wrong[0])} there and {ours.get(wrong[0])} here"
        raise ValueError(f"{tuned} is not a tuned {name}: {first}")
    linear = {n for n, module in base.model.named_modules() if is_linear(module)}
    layers: list[str] = []
    rest: dict[str, float] = {}
    for parameter, _ in base.model.named_parameters():
        before, after = (files.of(parameter).read().double() for files in (base, other))
        if torch.equal(before, after):
            continue
        layer = parameter.removesuffix(".weight")
        if parameter.endswith(".weight") and layer in linear:
            layers.append(layer)
        else:
            norm = float(before.norm())
            rest[parameter] = float((after - before).norm()) / norm if norm else float("inf")
    return layers, rest


def _listed(rest: dict[str, float]) -> str:
    from peft_lightning.messages import shortened

    by_size = sorted(rest, key=lambda name: -rest[name])
    return shortened([f"{name} (changed by {rest[name]:.3%})" for name in by_size])
