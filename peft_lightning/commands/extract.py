"""``python -m peft_lightning extract``: a LoRA of the changes of full fine-tuning."""

from __future__ import annotations

from pathlib import Path

from peft_lightning.messages import UserError


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
    overwrite: bool = False,
) -> None:
    """Write a LoRA adapter of the difference between a fine-tuned model and its base.

    Both are read tensor by tensor. The difference of each linear layer is factorised by truncated
    SVD; that of the output embedding too, unless it is tied to the input embedding.

    Args:
        tuned: The fine-tuned model: a folder, a checkpoint of full fine-tuning, or a hub id.
        out: Folder to write; HF PEFT reads it too.
        base_model: Base model, if not the one that a checkpoint names: hub id or folder.
        rank: Largest rank of a layer.
        retain: Instead of a rank, the share of each difference's squared norm to retain, such as
            0.95: each layer gets the lowest rank that retains it.
        ignore_other_changes: Extract even if other tensors (embeddings, norms, biases) differ too;
            their changes are listed and lost.
        allow_base_mismatch: Extract even if the checkpoint was trained on another base model.
        trust_remote_code: Whether code that comes with the models may run.
        revision: Branch, tag or commit of the base's hub id.
        overwrite: Replace the adapter that is in the folder.
    """
    from peft_lightning.adapters.base_check import require_base
    from peft_lightning.adapters.folder import read_facts
    from peft_lightning.adapters.lora.hf_parameters import taken_for_experts
    from peft_lightning.adapters.lora.updates_folder import (
        ADAPTER,
        common_tokenizer,
        require_rank_or_share,
        write_updates,
    )
    from peft_lightning.export.extracted_lora import extract_updates, find_differences, open_model
    from peft_lightning.export.unverified import tell_if_stopped
    from peft_lightning.files import require_no_input, require_output

    require_rank_or_share(rank, retain)
    require_output(out, ADAPTER, [tuned, base_model], overwrite)
    facts = read_facts(tuned)
    if not (name := base_model or facts["base_model"]):
        raise UserError(f"{tuned} does not name its base model: give it with --base_model")
    require_no_input(out, [name])
    tell_if_stopped(out)
    base = open_model(name, trust_remote_code, revision)
    other = open_model(tuned, trust_remote_code, None)
    fingerprint = base.fingerprint()
    if not allow_base_mismatch and facts["base_fingerprint"]:
        require_base(tuned, facts, fingerprint)
    layers, rest = find_differences(name, base, tuned, other)
    if rest and not ignore_other_changes:
        raise UserError(
            f"a LoRA cannot hold {len(rest)} of the tensors in which {tuned} differs from {name}: "
            f"{_listed(rest)}. --ignore_other_changes extracts the rest without them"
        )
    if not layers:
        raise UserError(f"no linear layer of {tuned} differs from {name}: nothing to extract")
    width = max(map(len, layers))
    print(f"{'layer':<{width}} {'rank':>5} {'norm':>9} {'of the base':>12} {'retained':>9}")
    found = []
    for update in extract_updates(base, other, layers, rank, retain):
        found.append(update)
        print(
            f"{update.layer:<{width}} {update.a.shape[0]:>5} {update.squared_norm**0.5:>9.4f} "
            f"{update.relative_norm:>12.3%} {update.retained:>9.2%}",
            flush=True,
        )
    kept = sum(u.squared_norm * u.retained for u in found)
    total = kept / sum(u.squared_norm for u in found)
    made_of = {"method": "extract", "rank": rank, "retain": retain, "model": Path(tuned).name}
    own = {"base_model": name, "base_fingerprint": fingerprint, "made_of": made_of}
    own |= {name: facts[name] for name in ("prompts",) if name in facts}
    own |= {"retained_energy": total, "left_out": rest}
    updates = {u.layer: (u.b, u.a) for u in found}
    files = common_tokenizer([Path(tuned)]) if Path(tuned).is_dir() else {}
    transposed, experts = (
        any(u.is_transposed for u in found),
        taken_for_experts(base.model, updates),
    )
    write_updates(out, updates, own, transposed, experts, files)
    count = sum(b.numel() + a.numel() for b, a in updates.values())
    print(
        f"{out}: {len(layers)} layers, {count:,} parameters; retained energy {total:.2%} in total, "
        f"{min(u.retained for u in found):.2%} at least"
    )
    if rest:
        print(f"left out: {_listed(rest)}")


def _listed(rest: dict[str, float]) -> str:
    from peft_lightning.messages import shortened

    by_size = sorted(rest, key=lambda name: -rest[name])
    return shortened([f"{name} (changed by {rest[name]:.3%})" for name in by_size])
