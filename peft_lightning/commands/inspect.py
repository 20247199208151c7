"""``python -m peft_lightning inspect``: the contents of a checkpoint or an adapter's folder."""

from __future__ import annotations

import json as json_module
import statistics
from pathlib import Path
from typing import Any

from peft_lightning.messages import RunError, UserError, printable


def inspect(
    path: str, /, *, json: bool = False, all: bool = False, base_model: str | None = None
) -> None:
    """Show the contents of a checkpoint or an adapter's folder, ours or HF PEFT's.

    The exit status is 1 if the folder holds weights of the base model.

    Args:
        path: Folder of an adapter or checkpoint, or OWNER/NAME@REVISION on the hub.
        json: Print everything as one JSON object.
        all: Print a line for each layer, not one for each kind of layer.
        base_model: Base model in which to look up the tokens nearest to each virtual token of a
            soft prompt; without, the one that the adapter names, if it is a local folder.
    """
    from peft_lightning.adapters.inspect import inspect_adapter
    from peft_lightning.hub import adapter_folder

    folder = adapter_folder(path)
    found = {"path": str(path), **inspect_adapter(folder)}
    if (folder / "trainer_state.pt").is_file():
        found["checkpoint"] = _checkpoint(folder / "trainer_state.pt")
    if "virtual_tokens" in found and found["method"] != "PREFIX_TUNING":  # those are no embeddings
        _add_nearest(folder, found, base_model)
    print(json_module.dumps(found, indent=2) if json else printable(_text(found, all)))
    if held := found["holds_base_weights"]:
        raise RunError(f"{path} holds weights of its base, which has them already: {held[0]}")


def _checkpoint(file: Path) -> dict[str, Any]:
    """Return step, epoch and position in the data; only plain values are unpickled."""
    from peft_lightning.training.saved_state import read_state

    state = read_state(file)
    data: dict[str, Any] = next((v for k, v in state.items() if k.endswith("DataModule")), {})
    plain = {k: v for k, v in data.items() if isinstance(v, int | float | str)}
    plain |= data.get("epoch_rows", {})  # skipped and limited
    return {"step": state.get("global_step"), "epoch": state.get("epoch"), "data": plain}


def _add_nearest(folder: Path, found: dict[str, Any], base_model: str | None) -> None:
    from peft_lightning.adapters.folder import read_adapter
    from peft_lightning.adapters.inspect import nearest_tokens
    from peft_lightning.base_model import load_base_model, load_tokenizer

    recorded = found["base_model"]
    name = base_model or (recorded if recorded and Path(recorded).expanduser().exists() else None)
    if name is None:
        return
    tokenizer = load_tokenizer(name)
    embeddings: Any = load_base_model(name).get_input_embeddings()
    prompt = read_adapter(folder)[1]["prompt_embeddings"]
    if prompt.shape[1] != embeddings.weight.shape[1]:
        raise UserError(
            f"the virtual tokens have {prompt.shape[1]} dimensions and the embeddings of {name} "
            f"{embeddings.weight.shape[1]}: it is not the adapter's base"
        )
    for token, ids in zip(
        found["virtual_tokens"], nearest_tokens(prompt, embeddings.weight), strict=True
    ):
        token["nearest"] = [tokenizer.decode([i]) for i in ids]


def _text(found: dict[str, Any], all_layers: bool) -> str:
    tensors = found["tensors"]
    lines = [
        f"{found['path']}: {found['method']}",
        f"  base model    {found['base_model'] or 'not named'}",
        f"  fingerprint   {_fingerprint(found['base_fingerprint'])}",
    ]
    if found["not_read"]:
        lines.append(f"  NOT READ      {found['not_read']}")
    if tensors["count"]:
        lines.append(
            f"  tensors       {tensors['count']}, {tensors['parameters']:,} parameters, "
            f"{tensors['bytes']:,} bytes, {', '.join(tensors['dtypes'])}"
        )
    if held := found["holds_base_weights"]:
        lines.append(f"  BASE WEIGHTS  {len(held)} tensors of the base are in it: {held[0]} ...")
    if at := found.get("checkpoint"):
        lines.append(f"  checkpoint    step {at['step']}, {_position(at)}")
        if "files" in at["data"]:
            lines.append(
                f"  data          {at['data']['files']}, hash {at['data']['data_hash']:.12}"
            )
    lines.append(
        "  options       " + ", ".join(f"{k}={_short(v)}" for k, v in found["options"].items())
    )
    lines += [f"  {size:>12,}  {name}" for name, size in found["files"].items()]
    if layers := found.get("layers"):
        lines += ["", *_layer_table(layers, all_layers)]
    for i, token in enumerate(found.get("virtual_tokens", [])):
        near = " ".join(map(repr, token.get("nearest", [])))
        lines.append(f"  virtual token {i:>3}  norm {token['norm']:.3f}  {near}")
    return "\n".join(lines)


def _position(checkpoint: dict[str, Any]) -> str:
    """Return the place in the training data at which a resumed run continues."""
    data = checkpoint["data"]
    if "finished_batches" not in data:  # a DataModule of somebody else
        return f"epoch {checkpoint['epoch']}"
    finished, batches = data["finished_batches"], data["batches_per_epoch"]
    text = f"epoch {data['epoch']}: {finished} of {batches} batches finished"
    if skipped := data["skipped"]:
        text += f", and before them {skipped} rows in batches of another size"
    if data["limited"]:
        text += "; trainer.limit_train_batches limits the epoch"
    return text


def _layer_table(layers: dict[str, Any], each: bool) -> list[str]:
    kinds: dict[str, list[Any]] = {}
    for name, facts in layers.items():
        kinds.setdefault(name if each else name.rpartition(".")[2], []).append(facts)
    width = max(map(len, kinds))
    head = f"  {'layer':<{width}} {'count':>5} {'r':>4} {'scaling':>8} {'norm of the update':>20}"
    lines = [head + f" {'eff. rank':>9} {'first share':>11}"]
    for name, facts in kinds.items():
        norms = sorted(f["norm"] for f in facts)
        spread = f"{norms[0]:.3f} {statistics.median(norms):.3f} {norms[-1]:.3f}"
        rank = statistics.median(f["effective_rank"] for f in facts)
        first = statistics.median(f["first_share"] for f in facts)
        ranks = "/".join(str(r) for r in sorted({f["r"] for f in facts}))
        scalings = "/".join(f"{s:g}" for s in sorted({f["scaling"] for f in facts}))
        lines.append(
            f"  {name:<{width}} {len(facts):>5} {ranks:>4} {scalings:>8} {spread:>20} "
            f"{rank:>9.2f} {first:>11.1%}"
        )
    lines.append("  norm: smallest, median and largest layer; effective rank, first share: medians")
    return [*lines, "  first share: part of the squared norm in the largest singular value"]


def _fingerprint(facts: dict[str, Any] | None) -> str:
    if not facts:
        return "none: which base it was trained on is not known for certain"
    hashes = ("shapes", "weights")
    return ", ".join(f"{k} {v[:12] if k in hashes else v}" for k, v in facts.items())


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:50]} ... ({len(value)})"
