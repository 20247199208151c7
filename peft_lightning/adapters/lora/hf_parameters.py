"""Layers that HF PEFT would take for experts, written for it as ``target_parameters``.

Over transformers 5 HF PEFT reads ``gate_proj`` and others among ``target_modules`` of some mixtures
of experts as they were before the experts' weights were stacked: as the experts. A dense or shared
layer of that name is then not adapted, and its tensors are lost with a warning. The parameter
``...gate_proj.weight`` among ``target_parameters`` means the layer alone, and computes the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from transformers.conversion_mapping import (
    _MODEL_TO_CONVERSION_PATTERN,
    get_checkpoint_conversion_mapping,
    get_model_conversion_mapping,
)
from transformers.core_model_loading import WeightRenaming, rename_source_key

from peft_lightning.adapters.lora.name_matching import match_pattern
from peft_lightning.messages import UserError, shortened

# peft/utils/transformers_weight_conversion.py: _MOE_TARGET_MODULE_MAPPING, by kind of conversion
EXPERTS = {
    "mixtral": {"gate", "w1", "w2", "w3"},
    "qwen2_moe": {"gate", "gate_proj", "up_proj", "down_proj"},
}
_WEIGHT = ".weight"


def taken_for_experts(model: Any, names: Collection[str]) -> list[str]:
    """Return those of ``names``, of linear layers, that HF PEFT takes for experts in ``model``."""
    leaves = _leaves(model)
    return [name for name in names if name.rpartition(".")[2] in leaves]


def hf_targets(
    model: Any, options: Mapping[str, Any], linear: Collection[str], others: Collection[str]
) -> dict[str, Any]:
    """Return the options of HF PEFT's config by which it finds the layers of a LoRA.

    Args:
        model: The base.
        options: The options with ``target_modules``, which are HF PEFT's already.
        linear: Names of the adapted linear layers.
        others: Names of the adapted embeddings.

    Returns:
        ``options``, where needed with the layers in question as ``target_parameters``, and all
        others by their full names: an expression would be cut to the ends of the names it matches.
    """
    if not _leaves(model):
        return dict(options)
    taken = taken_for_experts(model, linear)
    rest = [name for name in (*others, *linear) if name not in taken]
    found = dict(options)
    if isinstance(options["target_modules"], str):
        found["target_modules"] = rest
    return with_parameters(found, taken, rest)


def with_parameters(
    options: Mapping[str, Any], taken: Sequence[str], rest: Sequence[str]
) -> dict[str, Any]:
    """Return HF PEFT's options with the layers ``taken`` as parameters, and ``rest`` as modules."""
    found = dict(options)
    if not taken:
        return found
    found["target_modules"] = list(rest)
    found["target_parameters"] = [name + _WEIGHT for name in taken]
    for option in ("rank_pattern", "alpha_pattern"):
        patterns = options[option].items()
        kept = {k: v for k, v in patterns if any(match_pattern({k: v}, name) for name in rest)}
        own = {name: match_pattern(options[option], name) for name in taken}
        found[option] = kept | {n + _WEIGHT: v for n, v in own.items() if v is not None}
    return found


def layers_as_parameters(config: Mapping[str, Any]) -> set[str]:
    """Return the names of the layers that a config has as parameters."""
    parameters = config.get("target_parameters") or []
    return {str(p).removesuffix(_WEIGHT) for p in parameters if str(p).endswith(_WEIGHT)}


def lost_by_renaming(model: Any, names: Collection[str]) -> list[str]:
    """Return those of ``names``, of layers, whose tensors HF PEFT does not find in a folder.

    It renames them as transformers does the weights of a base in its files. For some models that
    changes names which the model has already.
    """
    config = getattr(model, "config", None)
    if get_checkpoint_conversion_mapping(getattr(config, "model_type", None)) is None:
        return []
    rules = [r for r in get_model_conversion_mapping(model) if isinstance(r, WeightRenaming)]
    found = []
    for name in names:
        key = f"{name}.lora_A.weight"
        renamed, _ = rename_source_key(key, rules, [])
        if not key.endswith(renamed):  # without a prefix, it is found
            found.append(name)
    return found


def require_parameters(model: Any, options: Mapping[str, Any], linear: Collection[str]) -> None:
    """Raise UserError if HF PEFT would take layers for experts, and cannot adapt their parameters.

    Args:
        model: The base.
        options: Those of the LoRA.
        linear: Names of the adapted linear layers.
    """
    given = [name for name in ("use_dora", "lora_bias", "lora_dropout") if options[name]]
    if given and (taken := taken_for_experts(model, linear)):
        raise UserError(
            f"{' and '.join(given)} cannot be had for {shortened(taken, 3)}: HF PEFT takes layers "
            f"of these names in a {model.config.model_type} for experts, and others than plain "
            "updates of them could be read by no other program. Leave it out, or these layers: "
            f"exclude_modules {sorted({name.rpartition('.')[2] for name in taken})}"
        )


def with_layers_of_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return HF PEFT's config with ``target_modules`` in place of the weights of layers."""
    found = dict(config)
    parameters: Sequence[str] = found.get("target_parameters") or []
    if not isinstance(parameters, list) or not all(isinstance(p, str) for p in parameters):
        return found
    layers = [p.removesuffix(_WEIGHT) for p in parameters if p.endswith(_WEIGHT)]
    if not layers or not isinstance(found.get("target_modules"), list | None):
        return found
    found["target_modules"] = [*(found.get("target_modules") or []), *layers]
    found["target_parameters"] = [p for p in parameters if not p.endswith(_WEIGHT)] or None
    for option in ("rank_pattern", "alpha_pattern"):
        patterns = found.get(option)
        if isinstance(patterns, dict):
            found[option] = {str(k).removesuffix(_WEIGHT): v for k, v in patterns.items()}
    return found


def _leaves(model: Any) -> set[str]:
    """Return the ends of names that HF PEFT takes for experts in ``model``."""
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    kinds = {"mixtral": "mixtral", **_MODEL_TO_CONVERSION_PATTERN}
    return EXPERTS.get(str(kinds.get(str(model_type))), set())
