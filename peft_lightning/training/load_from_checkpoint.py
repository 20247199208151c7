"""A module from a checkpoint: as it was configured, with the trained tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

import torch
import yaml
from lightning.pytorch.core.saving import load_hparams_from_tags_csv
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from peft_lightning.adapters import Full, read_adapter
from peft_lightning.adapters.folder import read_adapter_config
from peft_lightning.data import PromptFormat
from peft_lightning.files import existing_folder, read_text
from peft_lightning.hyperparameters import PlainHyperparameters, plain
from peft_lightning.messages import UserError, shortened
from peft_lightning.training.checkpoint_facts import check_base, check_checkpoint
from peft_lightning.training.checkpoint_io import STATE_FILE, AdapterCheckpointIO
from peft_lightning.training.construct import accepted, arguments_from
from peft_lightning.training.lightning_parts import unfreeze_as_saved
from peft_lightning.training.saved_state import OF_MODULE

_TWICE = re.compile(r"got multiple values for (?:keyword )?argument '(\w+)'")


class LoadsFromCheckpoint(PlainHyperparameters):
    """A ``CausalLMModule`` is built from its checkpoint, or from an adapter's folder."""

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO,
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Build a module as it was configured when a checkpoint was saved, with its tensors.

        Args:
            checkpoint_path: A checkpoint, or an adapter's folder, ours or HF PEFT's: that has no
                configuration of a module, so its other options are the defaults.
            map_location: Device of the module, as ``torch.load`` takes it; by default the CPU.
            hparams_file: A YAML or CSV file with the configuration, a logger's ``hparams.yaml`` for
                example, instead of the one in the checkpoint.
            strict: False to load the tensors that there are, and warn of the others. Otherwise
                missing and unexpected ones are an error; by default ``strict_loading`` decides.
            weights_only: False for a checkpoint that is trusted: the classes that it names are
                imported, and its trainer's state is unpickled, which can run code.
            kwargs: Arguments of the constructor that are used instead of the saved ones:
                ``base_model`` if that has moved.

        Raises:
            FileNotFoundError: If there is no such folder.
            UserError: If it is damaged, an argument is not saved, or the tensors do not fit.
        """
        if not isinstance(checkpoint_path, str | Path):
            raise UserError(
                f"load_from_checkpoint takes a folder, got a {type(checkpoint_path).__name__}"
            )
        folder = existing_folder(Path(checkpoint_path))
        checkpoint = None
        if (folder / STATE_FILE).is_file():
            checkpoint = AdapterCheckpointIO().load_checkpoint(folder, weights_only=weights_only)
        saved = dict((checkpoint or {}).get(OF_MODULE) or {})
        if hparams_file is not None:
            saved = _hparams_of(hparams_file)
        module = _build(cls, folder, saved, kwargs, strict=strict, trusted=weights_only is False)
        if checkpoint is not None:
            _load(module, checkpoint, strict)
        elif isinstance(module.adapter, Full):
            module.adapter.load_state_dict(module.model, read_adapter(folder).tensors)
        device = _device(map_location)
        return module if device is None or device == module.device else module.to(device)


def _build(
    kind: type,
    folder: Path,
    saved: Mapping[str, Any],
    given: dict[str, Any],
    *,
    strict: bool | None,
    trusted: bool,
) -> Any:
    """Return a module with its model, and the tensors of ``folder`` if its adapter is that one."""
    adapter, facts = read_adapter_config(folder)
    takes = accepted(kind)
    fixed: dict[str, Any] = {"adapter": adapter, "init_from": None}
    if not isinstance(adapter, Full) and strict is not False and "adapter" not in given:
        fixed["init_from"] = str(folder)
    if "base_model" not in saved or isinstance(saved["base_model"], dict):
        fixed["base_model"] = facts["base_model"]
    fixed = {k: v for k, v in fixed.items() if k in takes and k not in given}
    if fixed.get("base_model", folder) is None:
        raise UserError(f"{folder} does not name its base model: give base_model")
    if saved.get("trust_remote_code") and "trust_remote_code" not in given:
        raise UserError(
            f"{folder} was trained with trust_remote_code, which a checkpoint cannot decide: give "
            "trust_remote_code=True if you trust the code that comes with its base, else False"
        )
    arguments = arguments_from(kind, saved, {*given, *fixed}, trusted) | fixed
    module = _call(kind, arguments, given)
    if saved:
        module.save_hyperparameters({**saved, **plain(given)}, logger=module.logs_hyperparameters)
    module.prompt_format, module.tokenizer_folder = PromptFormat.of_folder(facts, folder), folder
    module.configure_model()
    return module


def _call(kind: type, arguments: dict[str, Any], given: dict[str, Any]) -> Any:
    """Call a constructor; an argument that a subclass gives to its base itself is left to it."""
    while True:
        try:
            return kind(**arguments, **given)
        except TypeError as error:
            twice = _TWICE.search(str(error))
            if twice is None or twice[1] not in arguments:
                raise
            del arguments[twice[1]]


def _load(module: Any, checkpoint: dict[str, Any], strict: bool | None) -> None:
    """Load what a checkpoint holds of a module, as Lightning does."""
    tensors = checkpoint["state_dict"]
    if module.strict_loading if strict is None else strict:
        check_checkpoint(module, checkpoint)
        unfreeze_as_saved(module, checkpoint)
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(tensors)
        return
    check_base(module, checkpoint)
    module.on_load_checkpoint(checkpoint)
    own = module.state_dict()
    for names, what in ((own.keys() - tensors, "missing"), (tensors.keys() - own, "unexpected")):
        if names:
            rank_zero_warn(f"{len(names)} tensors are {what}: {shortened(sorted(names))}")
    module.load_state_dict({name: tensors.get(name, tensor) for name, tensor in own.items()})


def _hparams_of(file: str | Path) -> dict[str, Any]:
    """Return the module's part of a YAML file: its section ``model``, or all of it."""
    path = Path(file).expanduser()
    if path.suffix.lower() not in (".yaml", ".yml", ".csv"):
        raise UserError(f"hparams_file must be a .yaml, .yml or .csv file, got {file}")
    text = read_text(path)
    if path.suffix.lower() == ".csv":
        return load_hparams_from_tags_csv(path)
    content = yaml.safe_load(text)
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold the arguments of a module by name")
    section = content.get("model")
    found = dict(section if isinstance(section, dict) else content)
    return dict(found["init_args"]) if "init_args" in found else found


def _device(map_location: Any) -> torch.device | None:
    """Return where ``map_location`` puts a tensor of the CPU; None for there."""
    if isinstance(map_location, Mapping):
        map_location = map_location.get("cpu")
    if map_location is None or isinstance(map_location, str | torch.device):
        return None if map_location is None else torch.device(map_location)
    moved = map_location(torch.zeros(1).untyped_storage(), "cpu")
    return None if moved is None else moved.device
