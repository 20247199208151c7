"""Defaults of ``fit``: the base model, and what is said of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft_lightning.cli.class_lookup import options_of
from peft_lightning.cli.config_index import ConfigIndex
from peft_lightning.files import user_cache

TWO_OPTIONS = (
    "fit needs two options: --model.base_model NAME, a hub id, a model's folder or a GGUF file, "
    "and --data.train FILE, the rows to train on; or --config FILE, which has both"
)


def quick_start_model() -> Path:
    """Return the folder into which ``scripts/get_smollm2.py`` writes the quick start's model."""
    return user_cache("models") / "SmolLM2-135M-Instruct"


def default_base_model(index: ConfigIndex, module_class: type) -> str | None:
    """Return the base model of a ``fit`` that is given data but no model.

    Args:
        index: What the user gave.
        module_class: The class of the module.

    Returns:
        The quick start's model if it exists. None if there is a model already: an option, an
        adapter's folder, which names its base, or the default value of an experiment's class.
    """
    folder = quick_start_model()
    if index.all("model.base_model", "model.init_from") or not index.get("data.train"):
        return None
    if (folder / "config.json").is_file() and options_of(module_class)["base_model"].required:
        return str(folder)
    return None


def what_is_missing(index: ConfigIndex, fault: str) -> str:
    """Return ``fault``, or a better message if it is that ``fit`` has no base model."""
    if not fault.startswith("model.base_model is required"):
        return fault
    if index.get("data.train") is None:
        return TWO_OPTIONS
    if index.get("model.init_from") is not None:
        return fault
    return (
        f"model.base_model is required: the quick start's model is not at {quick_start_model()}; "
        "python scripts/get_smollm2.py gets it, or give another as --model.base_model: a hub id, "
        "a model's folder or a GGUF file"
    )


def defaults_used(
    index: ConfigIndex, trainer: Any, epochs_filled: bool, base: str | None
) -> list[str]:
    """Return one line about the default model, and one about defaults of the Trainer.

    Args:
        index: What the user gave.
        trainer: The Trainer's arguments.
        epochs_filled: Whether the epochs are the default.
        base: The default model, if it is used.
    """
    of_model = f"no --model.base_model: the quick start's model is used, {base}"
    said = what_is_default(index, trainer, epochs_filled)
    return [line for line in (of_model if base else "", said) if line]


def what_is_default(index: ConfigIndex, trainer: Any, epochs_filled: bool) -> str | None:
    """Return one line about the defaults of the trainer that are used, None if there are none."""
    found = []
    if epochs_filled:
        found.append(f"{trainer.max_epochs} epochs (--trainer.max_epochs)")
    if trainer.gradient_clip_val and index.get("trainer.gradient_clip_val") is None:
        norm = f"gradient norm clipped at {trainer.gradient_clip_val}"
        found.append(f"{norm} (--trainer.gradient_clip_val)")
    return f"defaults: {', '.join(found)}" if found else None
