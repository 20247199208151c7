"""Options of a LoRA's file on the model that it is loaded into, as HF PEFT takes them.

HF PEFT passes over names that match nothing in a model. Where a file is read that is done here too,
in a line; where training is configured it is an error.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from peft_lightning.adapters.lora.name_matching import match_pattern
from peft_lightning.adapters.lora.targets import Targets
from peft_lightning.adapters.lora.trainable_tokens import is_tied, vocabulary_names
from peft_lightning.adapters.state_dict import PREFIX
from peft_lightning.adapters.tensor_names import layer_of, layers_in_model, with_layers
from peft_lightning.messages import UserError, shortened

_LORA = ".lora_"


def fitted(
    options: Mapping[str, Any], model: nn.Module, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the options of a file's LoRA and its tensors, by the names of ``model``.

    Args:
        options: Of ``LoRA``, as its config has them.
        model: The plain base.
        tensors: The file's, by HF PEFT's names.

    Raises:
        UserError: If the file holds modules that the model does not have.
    """
    found = dict(options)
    if layers := layers_in_model(model, tensors):
        tensors = with_layers(tensors, layers)
        found |= _renamed(options, layers, tensors)
        first = next(old for old, new in layers.items() if old != new)
        _say(f"the layers have other names in the file: {first} is {layers[first]} here")
    found |= _without_unmatched(found, model, tensors)
    found["ensure_weight_tying"] = _is_tied_in_file(found, model, tensors)
    return found, dict(tensors)


def _say(text: str) -> None:
    warnings.warn(text, stacklevel=1)  # of this place, so that one text is said once


def _renamed(
    options: Mapping[str, Any], layers: Mapping[str, str], tensors: Iterable[str]
) -> dict[str, Any]:
    """Return the options that name layers, with the model's names, in full."""
    adapted = {layer_of(name) for name in tensors if _LORA in name}
    new: dict[str, Any] = {
        "target_modules": [name for name in layers.values() if name in adapted],
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }
    for key in ("rank_pattern", "alpha_pattern"):
        values = {name: match_pattern(options[key], old) for old, name in layers.items()}
        new[key] = {re.escape(n): v for n, v in values.items() if v is not None and n in adapted}
    if options["modules_to_save"]:
        ends = tuple(options["modules_to_save"])
        whole = [new for old, new in layers.items() if old.endswith(ends) and new not in adapted]
        new["modules_to_save"] = whole or options["modules_to_save"]
    if isinstance(tokens := options["trainable_token_indices"], dict):
        ids = {new: _ids(tokens, old) for old, new in layers.items()}
        new["trainable_token_indices"] = {name: some for name, some in ids.items() if some}
    return new


def _ids(tokens: Mapping[str, list[int]], name: str) -> list[int] | None:
    return next((ids for end, ids in tokens.items() if name.endswith(end)), None)


def _without_unmatched(
    options: Mapping[str, Any], model: nn.Module, tensors: Iterable[str]
) -> dict[str, Any]:
    """Return the options that name something else than there is, without these names."""
    kept: dict[str, Any] = {}

    def keep(option: str, value: Any, dropped: list[Any]) -> None:
        if dropped:
            kept[option] = value
            names = shortened(list(map(str, dropped)))
            _say(f"{option} names what is not in this model, and is read without: {names}")

    names = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
    targets = Targets(**{name: options[name] for name in names})
    wanted = options["target_modules"]
    if isinstance(wanted, list) and (absent := targets.unmatched_names(model)):
        names_left = [name for name in wanted if name not in absent]
        keep("target_modules", names_left, absent if names_left else [])
    numbers = options["layers_to_transform"]
    if isinstance(numbers, list) and (beyond := targets.unmatched_numbers(model)):
        numbers_left = [number for number in numbers if number not in beyond]
        keep("layers_to_transform", numbers_left, beyond if numbers_left else [])
    found = Targets(**{name: kept.get(name, options[name]) for name in names}).find(model)
    for option in ("rank_pattern", "alpha_pattern"):
        pattern = options[option]
        unmatched = [k for k in pattern if not any(match_pattern({k: 1}, n) for n in found)]
        keep(option, {k: v for k, v in pattern.items() if k not in unmatched}, unmatched)
    modules = [name for name, _ in model.named_modules() if name]
    saved = options["modules_to_save"] or []
    unmatched = [end for end in saved if not any(name.endswith(end) for name in modules)]
    owners = {layer_of(name) for name in tensors}
    if held := [end for end in unmatched if any(f".{end}" in f".{owner}" for owner in owners)]:
        raise UserError(
            f"the file holds {shortened(held)} of modules_to_save, and this model has no such "
            "module (it may be the head of a classifier): load it with the class that it was "
            "trained on, in HF PEFT"
        )
    keep("modules_to_save", [end for end in saved if end not in unmatched], unmatched)
    return kept


def _is_tied_in_file(options: Mapping[str, Any], model: nn.Module, tensors: Iterable[str]) -> bool:
    """Whether input and output embedding stay one weight: HF PEFT ties those it knows by name.

    It says nothing of others, such as GPT-2's ``wte``, and saves what one of the two has alone.
    """
    if not options["ensure_weight_tying"] or not is_tied(model):
        return bool(options["ensure_weight_tying"])
    ends = (".lora_A.weight", ".lora_embedding_A", ".weight")
    sides = [f"{PREFIX}{name}" for name in vocabulary_names(model)]
    held = [side for side in sides if any(f"{side}{end}" in tensors for end in ends)]
    if len(held) == 1:
        name = held[0].removeprefix(PREFIX)
        _say(f"ensure_weight_tying: the file holds {name} alone, as HF PEFT ties no such name")
    return len(held) != 1
