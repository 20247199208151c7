"""A run's configuration for others to read: without defaults, secrets and private paths."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import lightning as L
import yaml

import peft_lightning
from peft_lightning.data.datamodule import SFTDataModule
from peft_lightning.messages import redacted, without_secrets
from peft_lightning.module import CausalLMModule

SECTIONS = {"model": CausalLMModule, "data": SFTDataModule, "trainer": L.Trainer}


def config_excerpt(file: Path) -> dict[str, Any]:
    """Return the options of a ``config.yaml`` that are not at their default.

    The logger is left out: it does not change what was trained.
    """
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    config.get("trainer", {}).pop("logger", None)
    for name, kind in SECTIONS.items():
        config[name] = _changed(config.get(name) or {}, kind)
    config["trainer"] = {k: v for k, v in config["trainer"].items() if v not in (False, "auto")}
    return dict(public_values(config))


def public_values(value: Any) -> Any:
    """Return a configuration without nulls and secrets, and paths cut to their last part."""
    if isinstance(value, dict):
        kept = {k: public_values(v) for k, v in without_secrets(value).items()}
        return {k: v for k, v in kept.items() if v not in (None, {}, [])}
    if isinstance(value, list):
        return [public_values(v) for v in value]
    if not isinstance(value, str):
        return value
    value = redacted(value)
    is_path = value.startswith(("/", "~", "./", "../")) or len(Path(value).parts) > 2
    return Path(value).name if is_path and "://" not in value else value


def _changed(options: dict[str, Any], kind: type) -> dict[str, Any]:
    """Return the options that are not at the default of a class, nested classes of ours included.

    Args:
        options: Arguments of the constructor, or ``class_path`` and ``init_args`` of another class.
        kind: The class.
    """
    if "class_path" in options:
        own = getattr(peft_lightning, options["class_path"].rpartition(".")[2], None)
        if own is None:  # a class of another package is not imported
            return options
        return {**options, "init_args": _changed(options.get("init_args") or {}, own)}
    defaults = {k: p.default for k, p in inspect.signature(kind).parameters.items()}
    return {
        key: _changed(value, kind) if isinstance(value, dict) and "class_path" in value else value
        for key, value in options.items()
        if key not in defaults or value != defaults[key]
    }
