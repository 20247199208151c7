"""Which run a checkpoint is of, so that none goes on from another's or with another adapter."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from peft_lightning.adapters.folder import FACTS_FILE
from peft_lightning.files import atomic_text
from peft_lightning.messages import UserError, shortened
from peft_lightning.process import slurm
from peft_lightning.training.moved_run import follow_moved_folder

RUN_FILE = "run.json"

MAY_CHANGE = {  # of an adapter between two parts of a run: none decides what its tensors mean
    "base_model_name_or_path",
    "init_lora_weights",
    "lora_dropout",
    "peft_version",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "tokenizer_kwargs",
    "tokenizer_name_or_path",
}


class RunIdentity(Callback):
    """Names a run when it begins from nothing; a resumed one has the name of its checkpoint.

    The name is in every checkpoint, and with the SLURM job in the ``run.json`` of the run's folder.
    """

    def __init__(self) -> None:
        self.name = secrets.token_hex(8)

    def state_dict(self) -> dict[str, Any]:
        return {"name": self.name}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.name = state_dict["name"]

    def on_load_checkpoint(
        self, trainer: Any, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let a run that goes on in its own folder keep its best, wherever that is now."""
        saved = checkpoint.get("callbacks", {}).get(self.state_key, {})
        if saved.get("name") == run_of(Path(trainer.default_root_dir)):
            follow_moved_folder(trainer, checkpoint)

    def on_train_start(self, trainer: Any, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and not trainer.fast_dev_run:
            facts = {"run": self.name, "slurm_job": slurm.current_job()}
            atomic_text(Path(trainer.default_root_dir) / RUN_FILE, json.dumps(facts) + "\n")


def run_name(trainer: Any) -> str | None:
    """Return the name of the trainer's run."""
    return next((c.name for c in trainer.callbacks if isinstance(c, RunIdentity)), None)


def step_of(checkpoint: Path) -> int:
    """Return the optimizer steps that the run behind a checkpoint had made."""
    return int(read_facts(checkpoint / FACTS_FILE).get("step", 0))


def run_of(folder: Path) -> str | None:
    """Return the name of the last run that trained in ``folder``, None if there is none."""
    return read_facts(folder / RUN_FILE).get("run")


def is_of_another_run(checkpoint: Path, root: Path) -> bool:
    """Whether a checkpoint in the folder ``root`` is known to be of another run than its last."""
    of_checkpoint = read_facts(checkpoint / FACTS_FILE).get("run")
    of_folder = run_of(root)
    return None not in (of_checkpoint, of_folder) and of_checkpoint != of_folder


def is_continued_by_this_job(root: Path) -> bool:
    """Whether this SLURM job began the run in ``root`` and was put back into the queue."""
    job = read_facts(root / RUN_FILE).get("slurm_job")
    return job is not None and job == slurm.current_job() and slurm.is_restarted()


def read_facts(file: Path) -> dict[str, Any]:
    """Return what a file says; a damaged one, which is reported where it is read, says nothing."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def check_same_run(saved: dict[str, Any], configured: dict[str, Any]) -> None:
    """Compare what a checkpoint remembers of the adapter with what is configured now.

    Args:
        saved: The adapter's configuration in the checkpoint.
        configured: That of this run.

    Raises:
        UserError: If they differ; names every field with both values.
    """
    names = [
        k
        for k in {**saved, **configured}
        if k not in MAY_CHANGE and saved.get(k) != configured.get(k)
    ]
    if "peft_type" in names:  # its options are all others
        names = ["peft_type"]
    if names:
        each = [
            f"{k}: {saved.get(k)!r:.60} in the checkpoint, {configured.get(k)!r:.60} configured"
            for k in sorted(names)
        ]
        listed = shortened(each)
        raise UserError(
            f"the checkpoint was trained with another adapter ({listed}). Configure the same "
            "adapter to continue, or start a new run: --ckpt_path none, in another "
            "--trainer.default_root_dir"
        )
