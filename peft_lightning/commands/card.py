"""``python -m peft_lightning card``: the README.md of an adapter, for those who find it."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from peft_lightning.messages import redacted, without_secrets

CARD_FILE = "README.md"

TEXT = """\
# {title}

{what}

## Use it

{use}
## Training

{numbers}
{config}Made with peft_lightning.
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

    It has what the hub asks for, how to load the adapter, and the numbers and the configuration of
    the run if they are beside it. Paths are cut to their last part; secrets are left out.

    Args:
        ckpt_path: The folder.
        base_model: Hub id of the base model, if the adapter was trained on a local folder.
        license: Its identifier, such as apache-2.0.
        repo: OWNER/NAME under which it will be found, for the examples.
    """
    from peft_lightning.files import atomic_text, existing_folder

    folder = existing_folder(ckpt_path)
    atomic_text(folder / CARD_FILE, model_card(folder, base_model, license, repo))
    print(f"{folder / CARD_FILE}")


def model_card(folder: Path, base_model: str | None, license: str | None, repo: str | None) -> str:
    """Return the model card of an adapter's folder.

    Raises:
        ValueError: If a file cannot be read.
        FileNotFoundError: If it is no adapter's folder.
    """
    import yaml

    from peft_lightning.adapters.inspect import inspect_adapter

    found = inspect_adapter(folder)
    is_whole = found["method"] == "FULL"
    base = base_model or plain(found["base_model"] or "")
    kind = "finetune" if is_whole else "adapter"
    tags = [f"base_model:{kind}:{base}"] * bool(base)
    tags += ["lora"] * (found["method"] == "LORA") + ["transformers"]
    front = {
        **({"base_model": base} if base else {}),
        "library_name": "transformers" if is_whole else "peft",
        **({"license": license} if license else {}),
        "pipeline_tag": "text-generation",
        "tags": tags,
    }
    name = (repo or _title(folder)).rpartition("/")[2]
    method = found["method"].lower().replace("_", " ").replace("lora", "LoRA")
    what = f"A {method} adapter for {base or 'a base model that it does not name'}."
    if is_whole:
        what = f"{base or 'A model'}, every weight of which was trained."
    run = _beside(folder, found)
    text = TEXT.format(
        title=name,
        what=what,
        use=_use(is_whole, base or "BASE", repo or name),
        numbers=_numbers(folder, found, run),
        config=_config(run),
    )
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n{text}"


def plain(value: Any) -> Any:
    """Return a configuration without nulls, secrets and the folders that paths lead through."""
    if isinstance(value, dict):
        kept = {k: plain(v) for k, v in without_secrets(value).items()}
        return {k: v for k, v in kept.items() if v not in (None, {}, [])}
    if isinstance(value, list):
        return [plain(v) for v in value]
    if not isinstance(value, str):
        return value
    value = redacted(value)
    is_path = value.startswith(("/", "~", "./", "../")) or len(Path(value).parts) > 2
    return Path(value).name if is_path and "://" not in value else value


def _title(folder: Path) -> str:
    """Return the run's name for a checkpoint, else that of the folder."""
    folder = folder.resolve()
    return folder.parents[1].name if folder.parent.name == "checkpoints" else folder.name


def _use(is_whole: bool, base: str, place: str) -> str:
    load = f'model = AutoModelForCausalLM.from_pretrained("{place if is_whole else base}")\n'
    peft = "" if is_whole else "from peft import PeftModel\n"
    put = "" if is_whole else f'model = PeftModel.from_pretrained(model, "{place}")\n'
    return (
        f"```python\n{peft}from transformers import AutoModelForCausalLM\n\n{load}{put}```\n\n"
        f'```bash\npython -m peft_lightning generate --ckpt_path {place} --prompt "Hello"\n```\n'
    )


def _beside(folder: Path, found: dict[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    """Return the run's folder and summary, if the adapter is a checkpoint of that run."""
    folder = folder.resolve()
    for root in (folder, folder.parent, folder.parent.parent):
        if (root / "summary.json").is_file():
            summary = json.loads((root / "summary.json").read_text(encoding="utf-8"))
            same = ("method", "base_fingerprint")
            return (root, summary) if all(summary[k] == found[k] for k in same) else None
    return None


def _numbers(folder: Path, found: dict[str, Any], run: tuple[Path, dict[str, Any]] | None) -> str:
    rows: dict[str, Any] = {"method": found["method"]}
    if found["tensors"]["count"]:
        rows["parameters of the adapter"] = f"{found['tensors']['parameters']:,}"
    if (step := found["facts"].get("step")) is not None:
        rows["optimizer steps"] = f"{step:,}"
    if made_of := found["facts"].get("made_of"):
        rows["made by"] = json.dumps(plain(made_of))
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
    import lightning as L
    import yaml

    from peft_lightning.data.datamodule import SFTDataModule
    from peft_lightning.module import CausalLMModule

    if run is None or not (run[0] / "config.yaml").is_file():
        return ""
    config = yaml.safe_load((run[0] / "config.yaml").read_text(encoding="utf-8"))
    config.get("trainer", {}).pop("logger", None)  # how it was watched, not how it was trained
    parts = {"model": CausalLMModule, "data": SFTDataModule, "trainer": L.Trainer}
    for name, kind in parts.items():
        config[name] = _changed(config.get(name) or {}, kind)
    config["trainer"] = {k: v for k, v in config["trainer"].items() if v not in (False, "auto")}
    return f"```yaml\n{yaml.safe_dump(plain(config), sort_keys=False)}```\n\n"


def _changed(options: dict[str, Any], kind: type) -> dict[str, Any]:
    """Return the options of a class that are not its defaults, those of our own classes within too.

    Args:
        options: Of its constructor, or ``class_path`` and ``init_args`` of another class.
        kind: The class.
    """
    import peft_lightning

    if "class_path" in options:
        own = getattr(peft_lightning, options["class_path"].rpartition(".")[2], None)
        if own is None:  # somebody else's: it would have to be imported
            return options
        return {**options, "init_args": _changed(options.get("init_args") or {}, own)}
    defaults = {k: p.default for k, p in inspect.signature(kind).parameters.items()}
    return {
        key: _changed(value, kind) if isinstance(value, dict) and "class_path" in value else value
        for key, value in options.items()
        if key not in defaults or value != defaults[key]
    }
