"""Layers whose update the model would never see: found by a forward, whatever the model is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from peft_lightning.adapters.lora.hf_parameters import lost_by_renaming
from peft_lightning.kernels.own_forward import own_forward
from peft_lightning.messages import shortened

HF_REFUSES = {  # peft/tuners/tuners_utils.py of 0.21.2, _check_lora_target_modules_mamba
    ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"): ("out_proj",)
}
NO_GRADIENT = "the logits have no gradient through it"
BY_ITS_WEIGHT = "its weight is used and its forward never called"
NEVER_RUN = "no forward over text runs it"
NO_TENSOR = "its output is not one tensor"
NOT_LINEAR = "its output has not the shape of a linear layer's"
RENAMED = (
    "HF PEFT looks for it under another name, as transformers renames weights when it loads them"
)

_LEFT_OUT = "_layers_without_update"  # attribute of a model with a new LoRA: name -> reason
_TOKENS = 8


def note_unreached(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    """Find the layers that no new LoRA is to act on, for ``left_out``, with a forward over tokens.

    Args:
        model: A model without an adapter. One whose forward takes no token ids is left alone.
        layers: Its linear layers and embeddings by name.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    refused = [names for kinds, names in HF_REFUSES.items() if kind in kinds]
    found = {
        name: f"HF PEFT refuses it in a {kind} model"
        for name in layers
        if any(name.rpartition(".")[2] in names for names in refused)
    }
    found |= dict.fromkeys(lost_by_renaming(model, layers), RENAMED)
    outputs = _outputs(model, layers)
    if outputs is not None:
        seen = {_without_last_number(name) for name, lacks in outputs.items() if lacks is None}
        called = {id(layers[name].weight) for name in outputs if name in layers}
        several = {  # whose weight is not one that is called under another name
            name
            for name, layer in layers.items()
            if _is_one_of_several_experts(name) and id(layer.weight) not in called
        }
        for name in layers:
            if name not in outputs:
                parent = name.rpartition(".")[0]
                if name in several and _without_last_number(name) in seen:
                    continue  # an expert that none of these tokens was sent to
                found[name] = BY_ITS_WEIGHT if parent in outputs else NEVER_RUN
            elif (lacks := outputs[name]) is not None:
                found[name] = lacks
    remember_unreached(model, found)


def remember_unreached(model: nn.Module, found: dict[str, str]) -> None:
    """Have ``left_out`` return ``found``."""
    forget_unreached(model)
    if found:
        setattr(model, _LEFT_OUT, found)


def left_out(model: nn.Module) -> dict[str, str]:
    """Return the layers that a new LoRA does not act on, and why."""
    found: dict[str, str] = getattr(model, _LEFT_OUT, {})
    return found


def forget_unreached(model: nn.Module) -> None:
    """Forget what ``note_unreached`` found."""
    model.__dict__.pop(_LEFT_OUT, None)


def count_kinds(
    model: nn.Module, adapted: Collection[str], linear: dict[str, nn.Module]
) -> str | None:
    """Return how many layers of each kind have an update and how many do not, and why.

    Args:
        model: The model with its LoRA.
        adapted: Names of the layers with an update.
        linear: All linear layers of the base by name.

    Returns:
        None if there is nothing to tell: no layer was left out, and no experts have their weights
        in one parameter, which is no linear layer.
    """
    reasons, experts = left_out(model), _stacked_experts(model)
    if not reasons and not experts:
        return None
    total = Counter(name.rpartition(".")[2] for name in linear)
    have = Counter(name.rpartition(".")[2] for name in adapted)
    why = {name.rpartition(".")[2]: reason for name, reason in reasons.items() if name in linear}
    missing = [
        f"{kind} {total[kind] - have[kind]}" + (f" ({why[kind]})" if kind in why else "")
        for kind in total
        if total[kind] > have[kind] and (kind in have or kind in why)
    ]
    missing += [f"{name} {n} (of experts, in one parameter a layer)" for name, n in experts.items()]
    those = shortened([f"{kind} {n}" for kind, n in have.items()], limit=12)
    return f"{those}; not: {shortened(missing, limit=8)}" if missing else None


def of_stacked_experts(model: nn.Module, names: Collection[str]) -> str | None:
    """Return why ``names`` of ``target_modules`` match nothing, if experts have those weights."""
    experts = _stacked_experts(model)
    if not experts or not any(name == "mlp" or name in experts for name in names):
        return None
    stacked = ", ".join(f"{name} {n}" for name, n in experts.items())
    return (
        f"target_modules {', '.join(names)}: {type(model).__name__} has no such linear layer, its "
        f"experts have their weights in one parameter a layer ({stacked}), which a LoRA does not "
        "act on; give attention or all-linear"
    )


def _stacked_experts(model: nn.Module) -> dict[str, int]:
    """Return the kinds of weights that many experts have in one parameter, and how many they are.

    Such a parameter is (experts, any, any), directly in a module that is no layer of torch.
    """
    found: Counter[str] = Counter()
    for module in model.modules():
        if type(module).__module__.startswith("torch."):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3 and min(parameter.shape) > 1:
                found[name] += parameter.shape[0]
    return dict(found)


def _outputs(model: Any, layers: Collection[str]) -> dict[str, str | None] | None:
    """Return the modules that a forward calls, and why an update of one has no effect, if so.

    Args:
        model: A causal LM.
        layers: Names of the modules whose gradients are asked for.
    """
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    weight = getattr(embedding, "weight", None)
    if weight is None or any(p.is_meta for p in model.parameters()):
        return None
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, weight.shape[0], (1, _TOKENS), generator=generator).to(weight.device)
    outputs: dict[str, str | None] = {}
    added: dict[str, Tensor] = {}  # zeros, of which there is a gradient where an output is used
    hooks = [
        module.register_forward_hook(_note(outputs, added, name, name in layers))
        for name, module in model.named_modules()
    ]
    try:
        with _as_evaluated(model), own_forward(model).using(), torch.enable_grad():
            logits = model(input_ids=ids, use_cache=False).logits
    except Exception:  # whatever a model wants beside token ids: nothing is known of its layers
        return None
    finally:
        for hook in hooks:
            hook.remove()
    with suppress(Exception):  # of a forward that no gradient goes through, or not in eval mode
        found = torch.autograd.grad(logits.sum(), list(added.values()), allow_unused=True)
        unused = [name for name, gradient in zip(added, found, strict=True) if gradient is None]
        outputs |= dict.fromkeys(unused, NO_GRADIENT)
    return outputs


def _note(
    outputs: dict[str, str | None], added: dict[str, Tensor], name: str, is_layer: bool
) -> Callable[..., Tensor | None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
        outputs[name] = None if isinstance(output, Tensor) else NO_TENSOR
        if not is_layer or not isinstance(output, Tensor):
            return None
        shape = (*inputs[0].shape[:-1], getattr(module, "out_features", 0))
        if isinstance(module, nn.Linear) and output.shape != shape:
            outputs[name] = NOT_LINEAR
        zero = torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
        added[name] = zero
        return output + zero

    return hook


@contextmanager
def _as_evaluated(model: nn.Module) -> Iterator[None]:
    """Switch dropout and torch.compile off."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module in training:
            module.training = True


def _is_one_of_several_experts(name: str) -> bool:
    """Whether a layer is numbered within a decoder layer, which is numbered itself."""
    return len(re.findall(r"\.\d+(?=\.)", f"{name}.")) > 1


def _without_last_number(name: str) -> str:
    return re.sub(r"\.\d+\.(?!.*\.\d+\.)", ".*.", f"{name}.")
