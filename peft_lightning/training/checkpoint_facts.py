"""What a checkpoint says of the run that it is of, and with what a resumed run is compared."""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor

from peft_lightning.adapters.base import as_json
from peft_lightning.adapters.base_check import differences
from peft_lightning.adapters.folder import Texts, adapter_texts
from peft_lightning.base_model.generation_config import FILE as GENERATION_CONFIG
from peft_lightning.base_model.weights_hash import weights_hash
from peft_lightning.messages import UserError
from peft_lightning.training.precision import say_if_changed, types_used
from peft_lightning.training.run_identity import check_same_run, run_name
from peft_lightning.training.run_tokenizer import RunTokenizer, prompt_facts


def checkpoint_facts(module: Any) -> dict[str, Any]:
    """Return what a resumed run is compared with, for its ``trainer_state.pt``."""
    return {
        "adapter": _adapter_config(module),
        "base_fingerprint": module.fingerprint,
        "base_weights": _base_weights(module),
        "types": types_used(module),
    }


def files_beside(
    module: Any, checkpoint: dict[str, Any], added: dict[str, Tensor], tokenizer: RunTokenizer
) -> tuple[str, Texts]:
    """Return the name of the adapter's tensor file, and the content of the files beside it.

    Args:
        module: The ``CausalLMModule``.
        checkpoint: Lightning's.
        added: What a subclass of the module has added to the state.
        tokenizer: Makes the files of the run's tokenizer.
    """
    facts = {
        "base_fingerprint": module.fingerprint,
        "step": checkpoint["global_step"],
        "run": run_name(module.trainer),
        **({"quantization": module.quantization} if module.quantization else {}),
        **({"added_tensors": sorted(added)} if added else {}),
        **types_used(module),
        **prompt_facts(module),
    }
    texts = adapter_texts(module.adapter, module.model, facts)
    if generation := texts.get(GENERATION_CONFIG):
        texts[GENERATION_CONFIG] = as_json(tokenizer.with_its_ends(module, json.loads(generation)))
    return module.adapter.tensor_file, {**texts, **tokenizer.files(module)}


def check_checkpoint(module: Any, checkpoint: dict[str, Any]) -> None:
    """Compare a checkpoint with the run that continues from it.

    Raises:
        UserError: If it was trained with another adapter or on another base model.
    """
    check_same_run(checkpoint["adapter"], _adapter_config(module))
    check_base(module, checkpoint)
    before, now = checkpoint.get("base_weights"), _base_weights(module)
    if None not in (before, now) and before != now:
        raise UserError(
            f"the weight files of {module.base_model_name} have changed since the checkpoint was "
            "written: give those it was trained on, or begin a new run with its adapter by "
            "model.init_from"
        )
    say_if_changed(checkpoint.get("types"), module)


def check_base(module: Any, checkpoint: dict[str, Any]) -> None:
    """Raise UserError if a checkpoint was trained on another base model than that of ``module``."""
    if checkpoint["base_fingerprint"] != module.fingerprint:
        raise UserError(
            f"the checkpoint belongs to another base model than {module.base_model_name}: "
            f"{differences(checkpoint['base_fingerprint'], module.fingerprint)}. Give the one that "
            "it was trained on as model.base_model, or begin a new run with its adapter by "
            "model.init_from"
        )


def _base_weights(module: Any) -> str | None:
    """Return the hash of the base's files; None for a base that was given as an object."""
    if module.given_base is not None:
        return None
    return weights_hash(module.base_model_name, module.revision)


def _adapter_config(module: Any) -> dict[str, Any]:
    return {**module.adapter.hf_config(module.model), **module.adapter.metadata()}
