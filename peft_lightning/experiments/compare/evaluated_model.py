"""The models to evaluate: one base with the adapters of runs by turns, and whole models."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from peft_lightning.adapters import LoRA
from peft_lightning.adapters.bank import BASE, AdapterBank
from peft_lightning.adapters.folder import read_adapter_config
from peft_lightning.adapters.full import Full
from peft_lightning.base_model import base_fingerprint, load_base_model
from peft_lightning.base_model.load import find_device
from peft_lightning.experiments.compare.runs import Run
from peft_lightning.hidden_cache.cache import leaves_inputs
from peft_lightning.kernels.attention import FLAT_ATTENTION
from peft_lightning.kernels.machine import find_machine
from peft_lightning.kernels.own_forward import own_forward
from peft_lightning.kernels.patch import patch_model
from peft_lightning.kernels.precision import choose_precision
from peft_lightning.loss import CausalLMLoss
from peft_lightning.messages import UserError
from peft_lightning.module import CausalLMModule

WholeModel = tuple[Any, Any, CausalLMLoss]  # a model, its adapter, and its loss


@dataclass(frozen=True)
class EvaluationOptions:
    """How runs are evaluated, all alike.

    Args:
        precision: Lightning's name of the precision; auto for that of the runs, if they have one
            in common that suits this machine, else for this machine's.
        device: auto, cpu, cuda ...
        max_new_tokens: Length limit of the answers.
        batch_size: Prompts that are answered at once.
        trust_remote_code: Whether code that comes with a model may run.
        forgetting: Whether the loss on general text is computed too.
    """

    precision: str = "auto"
    device: str = "auto"
    max_new_tokens: int = 128
    batch_size: int = 32
    trust_remote_code: bool = False
    forgetting: bool = False

    def precision_for(self, runs: list[Run]) -> str:
        """Return the precision to evaluate ``runs`` in."""
        if self.precision != "auto":
            return self.precision
        dtypes = {str(run.section("model").get("dtype") or "auto") for run in runs}
        dtype = dtypes.pop() if len(dtypes) == 1 else "auto"
        own: str = choose_precision(find_machine(torch.device(find_device(self.device))), dtype)
        used = {str(run.record.summary.get("precision")) for run in runs}
        return used.pop() if len(used) == 1 and used & {own, "32-true", "64-true"} else own


def is_whole(run: Run) -> bool:
    """Whether a run has trained weights of the base itself, which no adapter holds."""
    assert run.checkpoint is not None
    adapter, facts = read_adapter_config(run.checkpoint)
    added = [str(name) for name in facts.get("added_tensors", [])]
    return isinstance(adapter, Full) or any(name.startswith("model.") for name in added)


class EvaluatedBase:
    """A base model and the adapters of runs on it, one of them in it at a time.

    Args:
        runs: Runs on the same base.
        options: How they are evaluated.
        precision: Lightning's name of it.
    """

    def __init__(self, runs: list[Run], options: EvaluationOptions, precision: str) -> None:
        model, device = runs[0].section("model"), find_device(options.device)
        attention = str(model.get("attn_implementation") or "auto")
        base: Any = load_base_model(
            runs[0].base_model,
            dtype=str(model.get("dtype") or "auto"),
            attn_implementation=FLAT_ATTENTION if attention == "auto" else attention,
            trust_remote_code=options.trust_remote_code,
            revision=model.get("revision"),
            quantization=model.get("quantization"),
            device=device,
            precision=precision,
            machine=find_machine(torch.device(device)),
        )
        fingerprint = own_forward(base).fingerprint = base_fingerprint(base)
        if precision == "64-true":
            base.double()
        patch_model(base, precision=precision)
        self.model, self.bank = base, AdapterBank(base, fingerprint)

    def use(self, run: Run | None) -> tuple[Any, CausalLMLoss]:
        """Put the adapter of a run into the base, or none, and return it with its loss.

        Raises:
            UserError: If the adapter does not fit the base, or was trained on another one.
        """
        name = BASE
        if run is not None:
            assert run.checkpoint is not None
            name = str(run.checkpoint)
            if name not in self.bank.names:
                self.bank.add(name, run.checkpoint)
        adapter = self.bank.use(name)
        shapes = adapter or LoRA()  # not attached: it leaves inputs as they are
        return adapter, CausalLMLoss(self.model, shapes, leaves_inputs(shapes))


@contextmanager
def whole_model(run: Run | None, options: EvaluationOptions) -> Iterator[WholeModel]:
    """Yield the model of a run that has trained the base's own weights; free it afterwards.

    Raises:
        UserError: If its class cannot be imported, or its tensors do not fit.
    """
    assert run is not None
    path = str((run.options.get("model") or {}).get("class_path") or "")
    kind: Any = CausalLMModule
    if path.rpartition(".")[2] not in ("", CausalLMModule.__name__):
        module_name, _, name = path.rpartition(".")
        try:
            kind = getattr(importlib.import_module(module_name), name)
        except (ImportError, AttributeError):
            raise UserError(
                f"{run.name} is of {path}, which cannot be imported: start compare in the folder "
                "of its file"
            ) from None
    trust = {"trust_remote_code": options.trust_remote_code}
    trusting = trust if run.section("model").get("trust_remote_code") else {}
    try:
        module = kind.load_from_checkpoint(run.checkpoint, **trusting)
    except UserError as error:
        if path or not run.facts.get("added_tensors"):
            raise
        raise UserError(f"{error}; it was trained by a class of its own, not named here") from None
    module.to(find_device(options.device)).eval()
    try:
        yield module.model, module.adapter, module.outputs
    finally:
        module.model = module.outputs = None
        del module
        gc.collect()
