"""Options of a LoRA's file on the model that it is loaded into, as HF PEFT takes them.

HF PEFT passes over names that match nothing in a model. That is done here too where a file is read,
in a line; where training is configured it is an error.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peft_lightning.adapters.lora.name_matching import match_pattern
from peft_lightning.adapters.lora.targets import Targets
from peft_lightning.adapters.lora.trainable_tokens import is_tied, vocabulary_names
from peft_lightning.adapters.state_dict import PREFIX
from peft_lightning.adapters.tensor_names import (
    layer_of,
    layers_in_model,
    with_layers,
    without_empty_updates,
    without_wrappers,
)
from peft_lightning.messages import UserError, shortened

_LORA = ".lora_"
_CHOICE = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


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
    tensors, empty = without_empty_updates(model, tensors)
    if empty:
        _say(f"the file has updates of zero for layers that are not here: {shortened(empty, 2)}")
    if layers := layers_in_model(model, tensors):
        tensors = with_layers(tensors, layers)
        found |= _renamed(options, layers, tensors)
        old, new = next(pair for pair in layers.items() if pair[0] != pair[1])
        _say(f"the layers have other names in the file: {old} is {new} here")
    tensors = _without_base_weights(found, model, tensors)
    found |= _without_wrappers(found, model)
    found |= _without_unmatched(found, model, tensors)
    found["ensure_weight_tying"] = _is_tied_in_file(found, model, tensors)
    return found, dict(tensors)


def _say(text: str) -> None:
    warnings.warn(text, stacklevel=1)  # of this place, so that one text is said once


def _say_unmatched(option: str, names: Iterable[Any]) -> None:
    if shown := shortened(list(map(str, names))):
        _say(f"{option} names what is not in this model, and is read without: {shown}")


def _renamed(
    options: Mapping[str, Any], layers: Mapping[str, str], tensors: Iterable[str]
) -> dict[str, Any]:
    """Return the options that name layers, with the model's names, in full."""
    adapted = {layer_of(name) for name in tensors if _LORA in name}
    pairs = [pair for pair in layers.items() if pair[1] in adapted]
    new: dict[str, Any] = {
        "target_modules": [name for _, name in pairs],
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = options[key]
        values = {n: match_pattern(pattern, old) or match_pattern(pattern, n) for old, n in pairs}
        new[key] = {re.escape(name): value for name, value in values.items() if value is not None}
        unmatched = [k for k in pattern if not any(_matches_one(k, pair) for pair in pairs)]
        _say_unmatched(key, unmatched)
    if options["modules_to_save"]:
        ends = tuple(options["modules_to_save"])
        whole = [new for old, new in layers.items() if old.endswith(ends) and new not in adapted]
        new["modules_to_save"] = whole or options["modules_to_save"]
    if isinstance(tokens := options["trainable_token_indices"], dict):
        new["trainable_token_indices"] = {
            name: ids
            for old, name in layers.items()
            for e, ids in tokens.items()
            if old.endswith(e)
        }
    return new


def _matches_one(key: str, names: Iterable[str]) -> bool:
    return any(match_pattern({key: True}, name) for name in names)


def _without_base_weights(
    options: Mapping[str, Any], model: nn.Module, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Leave out weights that the model has already, as in the full state dict of a wrapped model.

    Embeddings are seen to elsewhere; what is trained beside updates may be equal and stays.
    """
    own = dict(model.named_parameters())
    ends = tuple(options["modules_to_save"] or ())
    kept = set(vocabulary_names(model))
    found = dict(tensors)
    for name, tensor in tensors.items():
        layer, _, part = name.removeprefix(PREFIX).replace(".base_layer.", ".").rpartition(".")
        if _LORA in name or layer in kept or (ends and any(f".{e}." in f".{layer}." for e in ends)):
            continue
        if part == "bias" and options["bias"] != "none":
            continue
        weight = own.get(f"{layer}.{part}")
        if weight is None or weight.is_meta or weight.shape != tensor.shape:
            continue
        if torch.equal(tensor.to(weight), weight):
            del found[name]
    if count := len(tensors) - len(found):
        _say(f"the file holds {count} weights that this model has already")
    return found


def _targets(options: Mapping[str, Any]) -> Targets:
    return Targets(**{name: options[name] for name in _CHOICE})


def _without_wrappers(options: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Return the options with names of a model that was wrapped when the adapter was made."""
    wanted = options["target_modules"]
    if not isinstance(wanted, list) or len(_targets(options).unmatched_names(model)) < len(wanted):
        return {}
    found: dict[str, Any] = {"target_modules": [without_wrappers(name) for name in wanted]}
    for key in ("rank_pattern", "alpha_pattern"):
        found[key] = {without_wrappers(name): value for name, value in options[key].items()}
    return {} if _targets({**options, **found}).unmatched_names(model) else found


def _without_unmatched(
    options: Mapping[str, Any], model: nn.Module, tensors: Iterable[str]
) -> dict[str, Any]:
    """Return the options that name something else than there is, without these names."""
    kept: dict[str, Any] = {}

    def keep(option: str, value: Any, dropped: list[Any]) -> None:
        if dropped:
            kept[option] = value
            _say_unmatched(option, dropped)

    targets = _targets(options)
    wanted = options["target_modules"]
    if isinstance(wanted, list) and (absent := targets.unmatched_names(model)):
        names_left = [name for name in wanted if name not in absent]
        keep("target_modules", names_left, absent if names_left else [])
    numbers = options["layers_to_transform"]
    if isinstance(numbers, list) and (beyond := targets.unmatched_numbers(model)):
        numbers_left = [number for number in numbers if number not in beyond]
        keep("layers_to_transform", numbers_left, beyond if numbers_left else [])
    found = _targets({**options, **kept}).find(model)
    for option in ("rank_pattern", "alpha_pattern"):
        pattern = options[option]
        unmatched = [key for key in pattern if not _matches_one(key, found)]
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
