"""The state of a ``CausalLMModule``: the adapter's tensors, and what a subclass has added.

Nothing of the frozen base is in it. ``nn.Module`` saves and loads it as any other, also as a part
of a larger module: names that belong to the base are no missing ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric

from peft_lightning.adapters.state_dict import check_tensors_fit
from peft_lightning.training.cluster.fsdp2 import gather_full, shard_like

BUILT = ("model", "evaluation")  # the parts that every module has: the rest is a subclass's


def adapter_tensors(module: Any) -> dict[str, Tensor]:
    """Return the adapter's tensors under HF PEFT's names; none before the model is built."""
    if module.model is None or module.outputs is None:
        return {}
    tensors: dict[str, Tensor] = module.adapter.state_dict(module.model)
    return tensors


def added_tensors(module: Any) -> dict[str, Tensor]:
    """Return what a subclass has added, under ``nn.Module``'s names.

    That is its own parameters, buffers and modules, the states of its metrics, and in ``model`` the
    tensors that were not there when it was built, or that were frozen then and are trained now.
    """
    return _added_beside(module) | _added_to_model(module)


def _added_beside(module: Any) -> dict[str, Tensor]:
    found: OrderedDict[str, Any] = OrderedDict()
    evaluated = _evaluation_metrics(module)
    nn.Module._save_to_state_dict(module, found, "", keep_vars=True)
    for name, child in module.named_children():
        if name not in BUILT:
            child.state_dict(destination=found, prefix=f"{name}.", keep_vars=True)
            for path, part in child.named_modules(prefix=name):
                if isinstance(part, Metric):
                    found |= {f"{path}.{k}": v for k, v in _states(part, evaluated).items()}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _states(metric: Metric, evaluated: set[int]) -> dict[str, Any]:
    """Return the states of a metric; those of a validation are of no use outside of it.

    A checkpoint at the end of a validation comes before Lightning resets what it has logged. A run
    that continues from it would add the next validation to this one.
    """
    if id(metric) not in evaluated:
        return {name: getattr(metric, name) for name in metric._defaults}
    defaults = {n: v for n, v in metric._defaults.items() if isinstance(v, Tensor)}
    return {name: value.to(metric.device, copy=True) for name, value in defaults.items()}


def _evaluation_metrics(module: Any) -> set[int]:
    """Return the ids of the metrics that the validation of a run has logged by ``self.log``."""
    if module._trainer is None:
        return set()
    results = module._trainer.fit_loop.epoch_loop.val_loop._results
    return {id(r.value) for r in results.values() if not r.is_tensor}


def _added_to_model(module: Any) -> dict[str, Tensor]:
    if module.model is None or not module.built_tensors or module.adapter.trains_base:
        return {}
    known = module.built_tensors
    return {
        f"model.{name}": tensor
        for name, tensor in _named_tensors(module.model)
        if name not in known or (tensor.requires_grad and not known[name])
    }


def tensors_of_model(model: nn.Module) -> dict[str, bool]:
    """Return the names of a model's parameters and buffers, and whether each is trained."""
    return {name: tensor.requires_grad for name, tensor in _named_tensors(model)}


def _named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def added_buffers(module: Any) -> dict[str, Tensor]:
    """Return copies of what a subclass has added and an optimizer does not change.

    Called after each step: the model is gone through once, for the buffers that it has got.
    """
    if module.model_buffers is None:
        added = _added_to_model(module).items()
        module.model_buffers = {n: t for n, t in added if not isinstance(t, nn.Parameter)}
    found = {**_added_beside(module), **module.model_buffers}
    return {n: t.detach().clone() for n, t in found.items() if not isinstance(t, nn.Parameter)}


# ---- as nn.Module calls it --------------------------------------------------------------------


def state_dict(
    module: Any, *, destination: Any = None, prefix: str = "", keep_vars: bool = False
) -> dict[str, Any]:
    """Return the state with whole tensors, also where they are sharded.

    Args:
        module: The ``CausalLMModule``; all processes of a sharded one must call this.
        destination: A dictionary to put the tensors into; a new one if None.
        prefix: What each name begins with.
        keep_vars: Whether to return what is added undetached, as torch does.
    """
    if destination is None:
        destination = OrderedDict()
        destination._metadata = OrderedDict()
    tensors = adapter_tensors(module) | added_tensors(module)
    for name, tensor in tensors.items():
        destination[prefix + name] = gather_full(tensor if keep_vars else tensor.detach())
    return destination


def check_fits(module: Any, tensors: Mapping[str, Any]) -> None:
    """Raise UserError if tensors are missing, unexpected or misshapen; the message lists them."""
    check_tensors_fit(adapter_tensors(module) | added_tensors(module), tensors)


def load_adapter(
    module: Any,
    tensors: dict[str, Any],
    prefix: str,
    local_metadata: Any,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """Copy the adapter's part of ``tensors`` into it, sharded or not, and take it out of them.

    The arguments are those of ``nn.Module._load_from_state_dict``.
    """
    module.loaded_prefix = prefix
    own = adapter_tensors(module)
    values: dict[str, Any] = dict(own)
    for name in own:
        value = tensors.pop(prefix + name, None)
        if value is None:
            missing.append(prefix + name)
        elif value.shape != own[name].shape:
            shapes = f"{tuple(value.shape)} in the file, {tuple(own[name].shape)} here"
            errors.append(f"{prefix + name} has another shape: {shapes}")
        else:
            values[name] = shard_like(value, own[name])
    if own and not errors:
        module.adapter.load_state_dict(module.model, values)
    for name, tensor in added_tensors(module).items():
        if prefix + name in tensors:
            tensors[prefix + name] = shard_like(tensors[prefix + name], tensor)


def forget_frozen(module: Any, incompatible: Any) -> None:
    """Take the names of the frozen base off the missing ones.

    A post-hook of ``load_state_dict``, which is called after that of the parts of a module.
    """
    prefix = module.loaded_prefix
    known = {prefix + name for name in adapter_tensors(module) | added_tensors(module)}
    of_base = tuple(f"{prefix}{part}." for part in BUILT)
    missing = incompatible.missing_keys
    missing[:] = [name for name in missing if name in known or not name.startswith(of_base)]
