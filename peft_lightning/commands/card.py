"""``python -m peft_lightning card``: the model card of an adapter, README.md in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CARD_FILE = "README.md"

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


def card(
    ckpt_path: str,
    /,
    *,
    base_model: str | None = None,
    license: str | None = None,
    repo: str | None = None,
) -> None:
    """Write a model card, README.md, into the folder of an adapter or checkpoint.

    It has the metadata that the hub asks for, shows how to load the adapter, and lists the numbers
    and the configuration of the run if the folder is in that of the run. Paths are cut to their
    last part; secrets are left out.

    Args:
        ckpt_path: Folder of an adapter or checkpoint.
        base_model: Hub id of the base model, if the adapter was trained on a local folder.
        license: Identifier of the license, such as apache-2.0.
        repo: OWNER/NAME of the adapter on the hub, for the examples.
    """
    from peft_lightning.files import atomic_text, existing_folder

    folder = existing_folder(ckpt_path)
    atomic_text(folder / CARD_FILE, model_card(folder, base_model, license, repo))
    print(f"{folder / CARD_FILE}")


def model_card(folder: Path, base_model: str | None, license: str | None, repo: str | None) -> str:
    """Return the model card of an adapter's folder.

    Args:
        folder: Folder of an adapter or checkpoint.
        base_model: Hub id of the base model; the one that the adapter names if None.
        license: Identifier of the license.
        repo: OWNER/NAME on the hub.

    Raises:
        UserError: If a file cannot be read.
        FileNotFoundError: If it is no adapter's folder.
    """
    from huggingface_hub import ModelCard, ModelCardData

    from peft_lightning.adapters.inspect import inspect_adapter
    from peft_lightning.cli.config_excerpt import public_values

    found = inspect_adapter(folder)
    is_whole = found["method"] == "FULL"
    base = base_model or public_values(found["base_model"] or "")
    tags = [f"base_model:{'finetune' if is_whole else 'adapter'}:{base}"] * bool(base)
    data = ModelCardData(
        base_model=base or None,
        library_name="transformers" if is_whole else "peft",
        license=license,
        pipeline_tag="text-generation",
        tags=[*tags, *["lora"] * (found["method"] == "LORA"), "transformers"],
    )
    name = (repo or _title(folder)).rpartition("/")[2]
    method = found["method"].lower().replace("_", " ").replace("lora", "LoRA")
    description = f"A {method} adapter for {base or 'a base model that it does not name'}."
    if is_whole:
        description = f"{base or 'A model'}, every weight of which was trained."
    run = _find_run(folder, found)
    content = ModelCard.from_template(
        data,
        template_str=TEMPLATE,
        title=name,
        description=description,
        usage=_usage(is_whole, base or "BASE", repo or name),
        numbers=_numbers(folder, found, run),
        config=_config(run),
    )
    return f"{content}\n"


def _title(folder: Path) -> str:
    """Return the run's name for a checkpoint, else that of the folder."""
    folder = folder.resolve()
    return folder.parents[1].name if folder.parent.name == "checkpoints" else folder.name


def _usage(is_whole: bool, base: str, place: str) -> str:
    load = f'model = AutoModelForCausalLM.from_pretrained("{place if is_whole else base}")\n'
    peft = "" if is_whole else "from peft import PeftModel\n"
    put = "" if is_whole else f'model = PeftModel.from_pretrained(model, "{place}")\n'
    return (
        f"```python\n{peft}from transformers import AutoModelForCausalLM\n\n{load}{put}```\n\n"
        f'```bash\npython -m peft_lightning generate --ckpt_path {place} --prompt "Hello"\n```\n'
    )


def _find_run(folder: Path, found: dict[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    """Return the run's folder and summary, if the adapter is a checkpoint of that run."""
    folder = folder.resolve()
    for root in (folder, folder.parent, folder.parent.parent):
        if (root / "summary.json").is_file():
            summary = json.loads((root / "summary.json").read_text(encoding="utf-8"))
            same = ("method", "base_fingerprint")
            return (root, summary) if all(summary[k] == found[k] for k in same) else None
    return None


def _numbers(folder: Path, found: dict[str, Any], run: tuple[Path, dict[str, Any]] | None) -> str:
    from peft_lightning.cli.config_excerpt import public_values

    rows: dict[str, Any] = {"method": found["method"]}
    if found["tensors"]["count"]:
        rows["parameters of the adapter"] = f"{found['tensors']['parameters']:,}"
    if (step := found["facts"].get("step")) is not None:
        rows["optimizer steps"] = f"{step:,}"
    if made_of := found["facts"].get("made_of"):
        rows["made by"] = json.dumps(public_values(made_of))
    if run is not None:
        summary, last = run[1], run[1]["last"]
        rows["steps of the run"] = f"{summary['steps']:,} ({summary['status']})"
        rows["tokens"] = f"{summary['tokens']:,}"
        if summary["best_val_loss"] is not None:
            own = "validation loss" if folder.name.startswith("best") else "best validation loss"
            rows[own] = f"{summary['best_val_loss']:.4f} nats a token"
        if step == summary["steps"]:
            rows |= {k: f"{last[k]:.4f}" for k in sorted(last) if k.startswith(("train/", "val/"))}
        rows["time"] = f"{summary['train_seconds']:,.0f} s"
        rows["speed"] = f"{summary['tokens_per_second']:,.0f} tokens/s"
        rows["peak memory"] = f"{summary['peak_memory_bytes'] / 2**30:.2f} GiB"
        rows["precision"] = summary["precision"]
        rows["processes"] = summary["world_size"]
        rows["seed"] = summary["seed"]
        rows |= summary["versions"]
    lines = [f"| {k} | {v} |" for k, v in rows.items() if v is not None]
    return "\n".join(["| | |", "|---|---|", *lines, ""])


def _config(run: tuple[Path, dict[str, Any]] | None) -> str:
    import yaml

    from peft_lightning.cli.config_excerpt import config_excerpt

    if run is None or not (run[0] / "config.yaml").is_file():
        return ""
    excerpt = yaml.safe_dump(config_excerpt(run[0] / "config.yaml"), sort_keys=False)
    return f"```yaml\n{excerpt}```\n\n"
