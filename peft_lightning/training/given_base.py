"""What ``CausalLMModule`` takes from Python beside names: a loaded base, a class of adapter."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel

from peft_lightning.adapters import Adapter, attached_adapter
from peft_lightning.base_model.load_errors import require_causal
from peft_lightning.base_model.quantization import is_quantized
from peft_lightning.kernels.machine import find_machine
from peft_lightning.kernels.own_forward import use_flat_attention
from peft_lightning.kernels.precision import choose, name_of, remember_choice
from peft_lightning.messages import UserError, did_you_mean, join_or
from peft_lightning.training.precision import precision_of_run

if TYPE_CHECKING:
    BaseModelOption = str | Path | PreTrainedModel
    AdapterOption = Adapter | type[Adapter] | str
else:  # what a config can hold
    BaseModelOption = str
    AdapterOption = Adapter


class GivenBase:
    """A base model that the caller has loaded, kept where Lightning does not look for parameters.

    Args:
        model: The model. The module takes it over: it is frozen, patched and put into eval mode.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def prepared(self, module: Any) -> PreTrainedModel:
        """Return the model as ``load_base_model`` would have loaded it, its weights as they are.

        Args:
            module: The ``CausalLMModule`` that trains on it.

        Raises:
            UserError: If an adapter is in it, or its weights are to be trained and not float32.
        """
        model: Any = self.model
        if (other := attached_adapter(model)) is not None and module.model is not model:
            raise UserError(
                f"the loaded base model has an adapter already, {other}: detach it first, "
                "adapter.detach(model)"
            )
        dtype, trains = str(name_of(model.dtype)), module.adapter.trains_base
        if trains and dtype in ("bfloat16", "float16"):
            raise UserError(
                f"the loaded base model is {dtype}, in which small steps round away, and "
                f"{type(module.adapter).__name__} trains its weights: load it with "
                "dtype=torch.float32"
            )
        if module.attn_implementation == "auto":
            use_flat_attention(model)
        else:
            model.set_attn_implementation(module.attn_implementation)
        run = precision_of_run(module._trainer)
        machine = run.get("machine") or find_machine(model.device)
        remember_choice(model, choose(machine, dtype, run.get("precision"), dtype))
        prepared: PreTrainedModel = model.requires_grad_(trains).eval()
        return prepared


def base_of(
    base_model: Any, dtype: str, quantization: str | None, revision: str | None
) -> tuple[str, GivenBase | None]:
    """Return the name of a base model, and the model if it is loaded.

    Args:
        base_model: A hub id, a path or a loaded model; its name is where it was loaded from.
        dtype: As for ``CausalLMModule``, as the others: what a loaded model decides itself.
        quantization: As for ``CausalLMModule``.
        revision: As for ``CausalLMModule``.

    Raises:
        UserError: If it is something else, or an option contradicts a loaded model.
    """
    if isinstance(base_model, str | os.PathLike):
        return os.fspath(base_model), None
    kind = type(base_model).__name__
    if hasattr(base_model, "merge_and_unload"):
        raise UserError(
            f"base_model is a {kind} of HF PEFT: give base_model.merge_and_unload(), or train its "
            "adapter on with init_from and the folder of save_pretrained"
        )
    if not isinstance(base_model, PreTrainedModel):
        what = (
            "a model of transformers" if isinstance(base_model, nn.Module) else "a hub id, a path"
        )
        raise UserError(
            f"base_model must be {what} or a loaded causal language model of transformers, got a "
            f"{kind}"
        )
    name = base_model.name_or_path or ""
    require_causal(name or kind, base_model.config)
    if base_model.get_output_embeddings() is None:
        raise UserError(
            f"base_model is a loaded {kind}, which has no head that predicts tokens: a causal "
            "language model is needed, load it with AutoModelForCausalLM"
        )
    loaded_dtype = name_of(base_model.dtype)
    if is_quantized(base_model):
        raise UserError(
            f"base_model is a loaded {kind} that is quantised: give its name, and quantization "
            "4bit or 8bit, so that its weights as saved are known"
        )
    given = {"quantization": quantization, "revision": revision}
    given |= {"dtype": None if dtype in ("auto", loaded_dtype) else dtype}
    for option, value in given.items():
        if value is not None:
            is_there = f", which is {loaded_dtype}" if option == "dtype" else ""
            raise UserError(
                f"base_model is a loaded {kind}{is_there}, so {option} {value} has no effect: "
                f"leave it out and load the model so, or give the model's name"
            )
    return name or kind, GivenBase(base_model)


def adapter_of(adapter: Any) -> Adapter:
    """Return an adapter: itself, or that of a class or of the name of one, with its defaults.

    Raises:
        UserError: If it is something else; suggests a similar name.
    """
    known = {kind.__name__: kind for kind in Adapter.by_peft_type.values()}
    if isinstance(adapter, str):
        if adapter not in known:
            raise UserError(
                f"there is no adapter {adapter!r}; there are {join_or(sorted(known))}"
                f"{did_you_mean(adapter, known)}"
            )
        return known[adapter]()
    if isinstance(adapter, type) and issubclass(adapter, Adapter):
        return adapter()
    if not isinstance(adapter, Adapter):
        raise UserError(
            f"adapter must be an adapter such as LoRA(r=16), its class or name, got {adapter!r:.80}"
        )
    return adapter
