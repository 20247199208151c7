"""Before the first step the processes of a run compare what they train on, and with what."""

from __future__ import annotations

import json
import platform
import socket
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from peft_lightning.base_model.weights_hash import weights_hash
from peft_lightning.files import sha256_of_json
from peft_lightning.messages import SharedError
from peft_lightning.training.cluster.submission import code_version

LIBRARIES = ("torch", "lightning", "transformers", "tokenizers", "safetensors", "numpy")
SHOWN = 12  # digits of a hash

PLACES = {  # paths, which may be others on each node: their contents are compared
    *("base_model", "init_from", "cache_dir", "hidden_cache_dir"),
    *("train", "val", "test", "predict"),
}
MEND = {  # what is compared -> what makes it equal
    "base model": "give all nodes the same files",
    "code": "start all of them from the same folder of sources",
    "libraries": "let all of them use one environment",
}


class RanksAgree(Callback):
    """Refuses to train where a process has another base, configuration, code or library.

    The data of an ``SFTDataModule`` are compared as soon as they are read. Without this, the
    gradients of two trainings would be averaged, or a model be put together of two.
    """

    def setup(self, trainer: Any, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit" or trainer.world_size == 1 or not torch.distributed.is_initialized():
            return
        facts: dict[str, Any] = {"node": socket.gethostname()}
        facts["base model"] = _in_turn(trainer, lambda: _base_of(pl_module))
        facts["options"] = _options_of(trainer, pl_module)
        facts["code"] = {_short_name(name): found for name, found in code_version().items()}
        facts["libraries"] = {name: version(name) for name in LIBRARIES}
        facts["libraries"]["python"] = platform.python_version()
        every: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(every, facts)
        if (difference := difference_of(every)) is not None:
            raise SharedError(difference)


def difference_of(facts: list[dict[str, Any]]) -> str | None:
    """Return the first difference between the facts of all processes, in one line."""
    for what in facts[0]:
        if what == "node":
            continue
        for rank, other in enumerate(facts):
            first, second = facts[0][what], other[what]
            if what == "code":  # a module may be loaded by the first process alone
                first = {name: first[name] for name in first if name in second}
                second = {name: second[name] for name in first}
            if first == second:
                continue
            ours, theirs = _differing(first, second)
            mend = MEND.get(what, "start all of them with the same command and config")
            return (
                f"the processes differ in their {what}: process 0 on {facts[0]['node']} has "
                f"{ours}, process {rank} on {other['node']} has {theirs}; {mend}"
            )
    return None


def _differing(ours: Any, theirs: Any) -> tuple[str, str]:
    """Return what two processes have, down to the first entry in which they differ."""
    place = ""
    while isinstance(ours, dict) and isinstance(theirs, dict):
        names = [k for k in {**ours, **theirs} if ours.get(k) != theirs.get(k)]
        if not names:
            break
        place = f"{place}.{names[0]}" if place else str(names[0])
        ours, theirs = ours.get(names[0]), theirs.get(names[0])
    shown = [str(v)[: SHOWN if _is_hash(v) else 60] for v in (ours, theirs)]
    return (f"{place} {shown[0]}".strip(), f"{place} {shown[1]}".strip())


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64


def _short_name(name: str) -> str:
    return Path(name).name if name.endswith(".py") else name


def _base_of(module: Any) -> Any:
    """Return the hash of a base's files; what is known of it, where there are none."""
    if getattr(module, "given_base", None) is not None:
        return None  # made in memory: DDP copies the first process's
    name, revision = getattr(module, "base_model_name", None), getattr(module, "revision", None)
    return weights_hash(str(name), revision) if name else None


def _in_turn(trainer: Any, read: Callable[[], Any]) -> Any:
    """Let one process of each node read, and the others then find what it has remembered."""
    found = read() if trainer.local_rank == 0 else None
    trainer.strategy.barrier()
    return found if trainer.local_rank == 0 else read()


def _options_of(trainer: Any, module: Any) -> dict[str, Any]:
    """Return what is configured, as far as JSON can hold it."""
    adapter: Any = getattr(module, "adapter", None)
    found = {
        "trainer.max_steps": trainer.max_steps,
        "trainer.max_epochs": trainer.max_epochs,
        "trainer.accumulate_grad_batches": trainer.accumulate_grad_batches,
        "trainer.gradient_clip_val": trainer.gradient_clip_val,
        "trainer.precision": trainer.precision,
        "model.adapter": adapter.options() if hasattr(adapter, "options") else str(adapter),
    }
    for section, part in (("model", module), ("data", trainer.datamodule)):
        given = dict(getattr(part, "hparams_initial", {}))
        found |= {f"{section}.{k}": v for k, v in given.items() if k not in PLACES}
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: Any) -> Any:
    """Return a value that is equal in every process if it says the same."""
    try:
        text = json.dumps(value, sort_keys=True)
    except (TypeError, ValueError):
        return type(value).__name__
    return value if len(text) <= 200 else sha256_of_json(value)
