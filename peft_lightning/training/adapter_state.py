"""The state of a ``CausalLMModule``: the adapter's tensors, and what a checkpoint holds of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from peft_lightning.adapters.folder import adapter_files
from peft_lightning.messages import UserError
from peft_lightning.training.cluster.fsdp2 import gather_full, shard_like
from peft_lightning.training.precision import say_if_changed, types_used
from peft_lightning.training.prediction import prompt_facts
from peft_lightning.training.run_identity import check_same_run, run_name


def adapter_tensors(module: Any, prefix: str = "") -> dict[str, Tensor]:
    """Return the adapter's tensors under HF PEFT's names, whole also where they are sharded.

    Args:
        module: The ``CausalLMModule``; all processes of a sharded one must call this.
        prefix: What each name begins with.
    """
    tensors = module.adapter.state_dict(module.model)
    return {prefix + name: gather_full(tensor) for name, tensor in tensors.items()}


def load_adapter_tensors(module: Any, tensors: Mapping[str, Any]) -> Any:
    """Copy whole tensors into the adapter's, sharded or not.

    Returns:
        What ``nn.Module.load_state_dict`` returns: lists of missing and unexpected names, empty.

    Raises:
        UserError: If names are missing or unexpected, or shapes differ.
    """
    own = module.adapter.state_dict(module.model)
    parts = {n: shard_like(t, own[n]) if n in own else t for n, t in tensors.items()}
    module.adapter.load_state_dict(module.model, parts)
    return nn.modules.module._IncompatibleKeys([], [])


def add_to_checkpoint(module: Any, checkpoint: dict[str, Any]) -> None:
    """Add the adapter's files, and what a resumed run is compared with, to a checkpoint."""
    facts = {
        "base_fingerprint": module.fingerprint,
        "step": checkpoint["global_step"],
        "run": run_name(module.trainer),
        **({"quantization": module.quantization} if module.quantization else {}),
        **(types := types_used(module)),
        **prompt_facts(module),
    }
    tensor_file, _, texts = adapter_files(module.adapter, module.model, facts, module.tokenizer)
    checkpoint["adapter_files"] = (tensor_file, texts)
    checkpoint["adapter"] = _adapter_config(module)
    checkpoint["base_fingerprint"], checkpoint["types"] = module.fingerprint, types


def check_checkpoint(module: Any, checkpoint: dict[str, Any]) -> None:
    """Compare a checkpoint with the run that continues from it.

    Raises:
        UserError: If it was trained with another adapter or on another base model.
    """
    check_same_run(checkpoint["adapter"], _adapter_config(module))
    if checkpoint["base_fingerprint"] != module.fingerprint:
        raise UserError(
            f"the checkpoint belongs to another base model: {checkpoint['base_fingerprint']} "
            f"there, {module.fingerprint} for {module.base_model_name}"
        )
    say_if_changed(checkpoint.get("types"), module)


def _adapter_config(module: Any) -> dict[str, Any]:
    return {**module.adapter.hf_config(module.model), **module.adapter.metadata()}
