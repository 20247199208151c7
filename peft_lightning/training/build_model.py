"""Build the model of a ``CausalLMModule``: the base, its kernels, the adapter and the loss."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins import DoublePrecision
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from peft_lightning.adapters import Adapter
from peft_lightning.adapters.bank import BASE, AdapterBank
from peft_lightning.adapters.folder import read_facts
from peft_lightning.base_model import base_fingerprint, load_base_model
from peft_lightning.data import PromptFormat
from peft_lightning.hidden_cache.cache import leaves_inputs
from peft_lightning.kernels.attention import FLAT_ATTENTION
from peft_lightning.kernels.own_forward import own_forward
from peft_lightning.kernels.patch import patch_model
from peft_lightning.loss import CausalLMLoss
from peft_lightning.messages import UserError
from peft_lightning.training.module_state import tensors_of_model
from peft_lightning.training.parameter_groups import check_groups
from peft_lightning.training.precision import precision_of_run, say_if_emulated
from peft_lightning.training.run_tokenizer import require_its_tokens, tokenizer_of
from peft_lightning.training.warm_start import adapter_to_continue, attach_trained


def adapter_to_train(
    adapter: Adapter, init_from: str | None
) -> tuple[Path | None, Adapter, PromptFormat | None]:
    """Return the folder that training starts from, the adapter, and the prompts of its training.

    Args:
        adapter: As configured.
        init_from: As configured; the adapter is the one in there.

    Returns:
        Folder and prompts are None if training does not start from a folder.
    """
    if init_from is None:
        return None, adapter, None
    folder, adapter = adapter_to_continue(init_from)
    return folder, adapter, PromptFormat.of_folder(read_facts(folder), folder)


def check_options(
    adapter: Adapter, learning_rate: float | None, checkpointing: bool, groups: Any = None
) -> None:
    """Raise UserError for options of a ``CausalLMModule`` that cannot be.

    Args:
        adapter: What is trained.
        learning_rate: As given.
        checkpointing: Whether activations are recomputed.
        groups: Options of the optimizer for some weights, by patterns.
    """
    check_groups(groups)
    if learning_rate is not None and learning_rate < 0:
        raise UserError(f"learning_rate must not be negative, got {learning_rate}")
    if checkpointing and adapter.uses_kv_cache:
        raise UserError(
            f"activation_checkpointing does not go with {type(adapter).__name__}, whose keys "
            "and values reach the layers through a cache: set it to false"
        )


def build_model(module: Any) -> None:
    """Load the base of a ``CausalLMModule``, freeze it, patch it and attach the adapter.

    Args:
        module: Gets ``model``, ``fingerprint`` and ``report``, and what it computes with: the
            ``bank`` of the adapters that answer, or the ``adapter`` and the loss, ``outputs``.

    Raises:
        UserError: If the options do not go with the base or the adapter.
    """
    trainer, answers = module._trainer, bool(module.answer_folders)
    if module.compile_layers and not answers and not leaves_inputs(module.adapter):
        raise UserError(
            f"compile: true does not go with {type(module.adapter).__name__}, whose virtual "
            "tokens change what is compiled: set model.compile to false"
        )
    model = _base_of(module)
    say_if_emulated(model)
    with suppress(UserError) if module.given_base else nullcontext():  # may go without
        tokenizer_of(module)
    module.fingerprint = base_fingerprint(model)
    if module.given_base is None:  # as it is on disk; what was done to a loaded one is not known
        own_forward(model).fingerprint = module.fingerprint
    module.report = patch_model(
        model,
        precision=None if trainer is None else str(trainer.precision),
        device=None if trainer is None else trainer.strategy.root_device,
        fuse=not module.compile_layers,
        compile=module.compile_layers and not answers,
        activation_checkpointing=module.activation_checkpointing and not answers,
    )
    if answers:
        module.model, module.bank = model, AdapterBank(model, module.fingerprint)
        for name, folder in module.answer_folders.items():
            module.bank.add(name, folder)
        rows = getattr(getattr(trainer, "datamodule", None), "predict_records", [])
        asks_base = any(row.get("adapter") == BASE for row in rows)
        for name in module.bank.names[0 if asks_base else 1 :]:
            module.bank.use(name)
            require_its_tokens(module, model)
        return
    if module.init_from is None:
        module.adapter.attach(model)
    else:
        given = module.configured_adapter
        facts = (module.fingerprint, trainer is None)  # without one, by load_from_checkpoint
        module.adapter = attach_trained(model, module.init_from, given, *facts)
    require_its_tokens(module, model)
    if trainer is not None and isinstance(trainer.precision_plugin, DoublePrecision):
        model.double()  # Lightning does so after it has read a checkpoint, into float32
    module.model = model
    module.built_tensors = tensors_of_model(model)
    shares_prefix = leaves_inputs(module.adapter) and not module.compile_layers
    coefficient = module.router_aux_loss
    module.outputs = CausalLMLoss(model, module.adapter, shares_prefix, coefficient)
    if trainer is not None and (routers := module.outputs.routers) is not None:
        rank_zero_info(
            f"train/loss has the load-balancing loss of the experts' routers times "
            f"{routers.coefficient:g}, which model.router_aux_loss sets; val/loss is the tokens' "
            "alone"
        )


def _base_of(module: Any) -> Any:
    """Return the base of a ``CausalLMModule``: loaded, or the one that was given."""
    if module.given_base is not None:
        return module.given_base.prepared(module)
    return load_base_model(
        module.base_model_name,
        dtype=module.dtype_name,
        attn_implementation=(
            FLAT_ATTENTION if module.attn_implementation == "auto" else module.attn_implementation
        ),
        trust_remote_code=module.trust_remote_code,
        revision=module.revision,
        quantization=module.quantization,
        frozen=not module.adapter.trains_base,
        **precision_of_run(module._trainer),
    )
