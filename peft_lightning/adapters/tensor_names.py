"""Names of an adapter's tensors in files of other programs, as HF PEFT writes them.

What a program wraps around a model (DDP, FSDP, ``torch.compile``, a second ``PeftModel``) is part
of its parameters' names; so is an adapter's name where the state dict was saved without HF PEFT.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from peft_lightning.adapters.state_dict import PREFIX
from peft_lightning.messages import UserError, shortened

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_AROUND = {"base_model", "model", "module"}  # attributes that hold a PeftModel in another module
_PARTS = r"lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector"
_PARTS += r"|modules_to_save|trainable_tokens_delta"
_NAMED = re.compile(rf"(.*\.(?:{_PARTS}))\.(?!weight$|bias$)([^.]+)(\..+)?")
_LAYER = re.compile(r"(.*?)\.(?:lora_|base_layer\.|token_adapter\.|original_module\.).*")
# before a decoder's layers: in a causal LM, a bare decoder and models of text and images
_STEMS = ("", "language_model.", "language_model.model.", "model.language_model.", "model.")


def peft_names(names: Iterable[str]) -> dict[str, str]:
    """Return HF PEFT's name for each tensor of an adapter's file.

    Only what is certain without the model is changed: wrappers, an adapter's name, and a missing
    or doubled prefix.

    Raises:
        UserError: If there are tensors of several adapters, or two would have one name.
    """
    adapters: set[str] = set()
    found = {name: _peft_name(name, adapters) for name in names}
    if len(adapters) > 1:
        raise UserError(
            f"the file holds tensors of {len(adapters)} adapters, {', '.join(sorted(adapters))}: "
            "save each into a folder of its own, with save_pretrained(FOLDER, "
            "selected_adapters=[NAME])"
        )
    if len(set(found.values())) < len(found):
        twice = [n for n, new in found.items() if list(found.values()).count(new) > 1]
        raise UserError(f"the file names the same tensor in two ways: {shortened(twice, 2)}")
    return found


def without_wrappers(name: str) -> str:
    """Return the name of a layer without what a program wraps around a model."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS).removeprefix(
        "module."
    )


def layer_of(name: str) -> str:
    """Return the name of the module in the model that a tensor of a file belongs to."""
    name = name.removeprefix(PREFIX)
    match = _LAYER.fullmatch(name)
    return match[1] if match else name.rpartition(".")[0]


def layers_in_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the module of ``model`` for each one that the tensors of a file name.

    A bare decoder, a causal LM and the language model within a model of text and images name the
    same layers with other beginnings.

    Returns:
        New names by those in the file; none if the names are the model's already, or if there is
        not exactly one way to read all of them.
    """
    there = {name for name, _ in model.named_modules() if name}
    layers = list(dict.fromkeys(map(layer_of, tensors)))
    if not layers or there.issuperset(layers):
        return {}
    decoder = f"{getattr(model, 'base_model_prefix', 'model')}."
    stems = dict.fromkeys((*_STEMS, decoder))
    ways = set()
    for old in stems:
        for new in stems:
            read = tuple(n if n in there else _renamed(n, old, new) for n in layers)
            if there.issuperset(read) and len(set(read)) == len(read):
                ways.add(read)
    return dict(zip(layers, ways.pop(), strict=True)) if len(ways) == 1 else {}


def without_empty_updates(
    model: nn.Module, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Leave out updates of zero of layers that are not in ``model``, and return these layers.

    An adapter of a model of text and images that saw text alone has such for what sees images.
    """
    there = {name for name, _ in model.named_modules()}
    absent = {layer for layer in map(layer_of, tensors) if layer not in there}
    parts: dict[str, dict[str, Tensor]] = {layer: {} for layer in absent}
    for name, tensor in tensors.items():
        if (layer := layer_of(name)) in absent:
            parts[layer][name[len(PREFIX) + len(layer) :]] = tensor
    empty = [
        layer
        for layer, own in parts.items()
        if own.keys() == {".lora_A.weight", ".lora_B.weight"} and not own[".lora_B.weight"].any()
    ]
    rest = {name: tensor for name, tensor in tensors.items() if layer_of(name) not in empty}
    is_read = layers_in_model(model, rest) or there.issuperset(map(layer_of, rest))
    return (rest, sorted(empty)) if empty and rest and is_read else (dict(tensors), [])


def with_layers(tensors: Mapping[str, Tensor], layers: Mapping[str, str]) -> dict[str, Tensor]:
    """Return tensors with the names that ``layers_in_model`` gives to their layers."""
    found = {}
    for name, tensor in tensors.items():
        layer = layer_of(name)
        found[f"{PREFIX}{layers.get(layer, layer)}{name[len(PREFIX) + len(layer) :]}"] = tensor
    return found


def _renamed(name: str, old: str, new: str) -> str:
    return new + name[len(old) :] if name.startswith(old) else ""


def _peft_name(name: str, adapters: set[str]) -> str:
    """Return HF PEFT's name for one tensor; add the adapter's name in it to ``adapters``."""
    if "." not in name:  # of a soft prompt
        return name
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    parts = parts[_after_prefixes(parts) :]
    if parts[0] == "module":
        parts = parts[1:]
    name = ".".join(parts)
    if match := _NAMED.fullmatch(name):
        stem, adapter, rest = match.groups()
        adapters.add(adapter)
        owner, _, part = stem.rpartition(".")
        name = f"{owner}{rest}" if part == "modules_to_save" else stem + (rest or "")
    return PREFIX + name.removesuffix(".weight" if "lora_magnitude_vector." in name else "\0")


def _after_prefixes(parts: list[str]) -> int:
    """Return where the name in the model starts, behind all of HF PEFT's prefixes."""
    for i in range(len(parts) - 2, -1, -1):
        if parts[i : i + 2] == ["base_model", "model"] and set(parts[:i]) <= _AROUND:
            return i + 2
    return 0
