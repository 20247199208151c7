"""The model card of an adapter or of a merged model: what it is, how to use it, how it was made."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from torch import Tensor

from peft_lightning.adapters.folder import CONFIG_FILE, read_facts
from peft_lightning.adapters.inspect import folder_facts, tensors_in
from peft_lightning.cli.config_excerpt import config_excerpt, public_values
from peft_lightning.cli.usage_example import usage_example
from peft_lightning.export.merged_from import read_merged_from
from peft_lightning.files import CARD_FILE
from peft_lightning.messages import printable, shortened

TEMPLATE = """\
---
{{ card_data }}
---

# {{ title }}

{{ description }}

## Use it

{{ usage }}
## Training

{{ numbers }}
{{ config }}Made with peft_lightning.
"""
NAMES = {  # of the options that every card of the method has, also at their defaults
    "r": "rank",
    "lora_alpha": "alpha",
    "target_modules": "targets",
    "lora_dropout": "dropout",
    "num_virtual_tokens": "virtual tokens",
}
_NOT_SHOWN = {"base_model_name_or_path", "tokenizer_name_or_path", "inference_mode", "task_type"}
_NOT_SHOWN |= {"peft_type", "peft_version", "auto_mapping", "revision", *NAMES}


def model_card(folder: Path, base_model: str | None, license: str | None, repo: str | None) -> str:
    """Return the model card of a folder.

    Args:
        folder: Of an adapter, a checkpoint or a model that an adapter was merged into.
        base_model: Hub id of the base model; the one that the adapter names if None.
        license: Identifier of the license; that of the base, if it is known, if None.
        repo: OWNER/NAME on the hub.

    Raises:
        UserError: If a file cannot be read.
        FileNotFoundError: If it is no adapter's folder.
    """
    merged = read_merged_from(folder)
    found = merged or of_adapter(folder)
    named = found["base_model"]
    is_whole = merged is not None or found["method"] == "FULL"
    base = base_model or public_values(named or "")
    tags = [f"base_model:{'finetune' if is_whole else 'adapter'}:{base}"] * bool(base)
    license = license or _license_of(named)
    is_lora = found["method"] == "LORA" and not is_whole
    data = ModelCardData(
        base_model=base or None,
        library_name="transformers" if is_whole else "peft",
        license=license,
        pipeline_tag="text-generation",
        tags=[*tags, *["lora"] * is_lora, "transformers"],
    )
    name = (repo or _title(folder)).rpartition("/")[2]
    method = found["method"].lower().replace("_", " ").replace("lora", "LoRA")
    description = f"A {method} adapter for {base or 'a base model that it does not name'}."
    if merged is not None:
        description = f"{base or 'A base model'} with a {method} adapter merged into it."
    elif is_whole:
        description = f"{base or 'A model'}, every weight of which was trained."
    content = ModelCard.from_template(
        data,
        template_str=TEMPLATE,
        title=name,
        description=description,
        usage=usage_example(folder, found["facts"], is_whole, base or "BASE", repo or name),
        numbers=_table(_rows(found, license)),
        config=_yaml(found["config"]),
    )
    return printable(f"{content}\n")


def of_adapter(folder: Path, tensors: dict[str, Tensor] | None = None) -> dict[str, Any]:
    """Return what the card says of an adapter's folder, with what its run says of it.

    Args:
        folder: The adapter's.
        tensors: Its tensors, if they have been read.
    """
    found = folder_facts(folder, tensors_in(folder) if tensors is None else tensors)
    run = _find_run(folder, found)
    config, of_run = {}, run and run[0] / "config.yaml"
    if (folder / CONFIG_FILE).is_file():
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    return {
        **{key: found[key] for key in ("method", "base_model", "options", "tensors")},
        "checkpoint": folder.name,
        "facts": read_facts(folder),
        "adapter": {**(found["options"] or {}), **{k: config[k] for k in NAMES if k in config}},
        "summary": run and run[1],
        "config": config_excerpt(of_run) if of_run and of_run.is_file() else {},
    }


def _title(folder: Path) -> str:
    """Return the run's name for a checkpoint, else that of the folder."""
    folder = folder.resolve()
    return folder.parents[1].name if folder.parent.name == "checkpoints" else folder.name


def _find_run(folder: Path, found: dict[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    """Return the run's folder and summary, if the adapter is a checkpoint of that run."""
    for root in ((folder := folder.resolve()), folder.parent, folder.parent.parent):
        if (root / "summary.json").is_file():
            summary = json.loads((root / "summary.json").read_text(encoding="utf-8"))
            same = ("method", "base_fingerprint")
            return (root, summary) if all(summary[k] == found[k] for k in same) else None
    return None


def _license_of(base: str | None) -> str | None:
    """Return the license that the card of a base in a local folder names, if there is one."""
    card = Path(base or "nowhere").expanduser() / CARD_FILE
    with suppress(OSError, ValueError, yaml.YAMLError):
        named = ModelCard.load(card).data.license if card.is_file() else None
        return named if isinstance(named, str) else None
    return None


def _rows(found: dict[str, Any], license: str | None) -> dict[str, Any]:
    """Return the table of a card: what was trained on what, and the results."""
    summary, config = found["summary"], found["config"]
    rows: dict[str, Any] = {"method": found["method"]}
    own = {**found["adapter"], **{k: v for k, v in (summary or {}).get("adapter", {}).items() if v}}
    for key, name in NAMES.items():
        value = own.get(key)
        rows[name] = shortened(sorted(value), 12) if isinstance(value, list) else value
    others = {k: v for k, v in found["options"].items() if k not in _NOT_SHOWN}
    rows |= {key: json.dumps(public_values(value)) for key, value in sorted(others.items())}
    if found["tensors"]["count"]:
        rows["parameters of the adapter"] = f"{found['tensors']['parameters']:,}"
    data = config.get("data", {})
    rows |= {f"{split} data": _named(data.get(split)) for split in ("train", "val", "test")}
    if system := found["facts"].get("prompts", {}).get("system_prompt"):
        rows["system prompt"] = json.dumps(public_values(system), ensure_ascii=False)
    step = found["facts"].get("step")
    rows["optimizer steps"] = None if step is None else f"{step:,}"
    if made_of := found["facts"].get("made_of"):
        rows["made by"] = json.dumps(public_values(made_of))
    if summary is not None:
        rows |= _results(summary, step, found["checkpoint"].startswith("best"))
    rows["license of the base"] = license and _license_of(found["base_model"])
    return rows


def _results(summary: dict[str, Any], step: int | None, is_best: bool) -> dict[str, Any]:
    last, best = summary["last"], summary["best_val_loss"]
    rows: dict[str, Any] = {
        "steps of the run": f"{summary['steps']:,} ({summary['status']})",
        "tokens": f"{summary['tokens']:,}",
    }
    if best is not None:
        own = "validation loss" if is_best else "best validation loss"
        rows[own] = f"{best:.4f} nats a token"
    if step == summary["steps"]:
        rows |= {k: f"{last[k]:.4f}" for k in sorted(last) if k.startswith(("train/", "val/"))}
    rows["time"] = f"{summary['train_seconds']:,.0f} s"
    rows["speed"] = f"{summary['tokens_per_second']:,.0f} tokens/s"
    rows["peak memory"] = f"{summary['peak_memory_bytes'] / 2**30:.2f} GiB"
    named = {"precision": "precision", "processes": "world_size", "seed": "seed"}
    return rows | {name: summary[key] for name, key in named.items()} | summary["versions"]


def _named(source: Any) -> str | None:
    """Return the names of the files or data sets of a split."""
    sources = source if isinstance(source, list) else [source]
    names = [s if isinstance(s, str) else json.dumps(s) for s in sources if s]
    return shortened(names) if names else None


def _table(rows: dict[str, Any]) -> str:
    texts = {name: str(v).replace("|", "\\|") for name, v in rows.items() if v is not None}
    lines = [f"| {name} | {text} |" for name, text in texts.items()]
    return "\n".join(["| | |", "|---|---|", *lines, ""])


def _yaml(excerpt: dict[str, Any]) -> str:
    return f"```yaml\n{yaml.safe_dump(excerpt, sort_keys=False)}```\n\n" if excerpt else ""
