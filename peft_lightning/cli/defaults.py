"""What the user left open: run folder, checkpoint, learning rate, loggers."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from peft_lightning.adapters import Adapter
from peft_lightning.cli.class_lookup import find_class
from peft_lightning.cli.fit_defaults import CLIP_VAL
from peft_lightning.files import existing_folder, require_undamaged
from peft_lightning.training.run_identity import is_continued_by_this_job, is_of_another_run
from peft_lightning.training.warm_start import adapter_to_continue, conflict

TRAINER_DEFAULTS = {
    "use_distributed_sampler": False,  # the data module's own order is the one that is resumed
    "enable_model_summary": False,  # report.trained_table says it better
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 5,
    "gradient_clip_val": CLIP_VAL,
}
NO_CHECKPOINT = "none"  # as a value of --ckpt_path


def checkpoint_path(command: str, name: str | None, root: Path) -> str | None:
    """Return the checkpoint that ``--ckpt_path`` means.

    Args:
        command: fit, validate, test or predict.
        name: last, best or a path; none, or None, for no checkpoint.
        root: The run's folder.

    Returns:
        The path, None to begin without: also where ``fit`` is to continue from ``last`` and there
        is none of this run yet. The one before ``last`` if that is damaged. A SLURM job that was
        put back into the queue goes on from its ``last``, whatever it began with.

    Raises:
        ValueError: If it is not there, damaged, or of another run than the folder; says what is.
    """
    if SLURMEnvironment.detect() and (foreign := sorted(root.glob("hpc_ckpt_*"))):
        raise ValueError(
            f"{foreign[0]} is another program's checkpoint, which Lightning would load in a SLURM "
            "job: remove it, or give another --trainer.default_root_dir"
        )
    folder = root / "checkpoints"
    if command == "fit" and name != "last" and is_continued_by_this_job(root):
        last = _existing(folder / "last.ckpt")
        if last is not None and not is_of_another_run(last, root):
            rank_zero_info(f"this job was requeued: it continues from {last}")
            name = "last"
    if name in (None, NO_CHECKPOINT):
        if command != "fit" and name is None:
            rank_zero_info(
                f"no --ckpt_path: this {command} uses an untrained adapter, as with --ckpt_path "
                "none; --ckpt_path best is the trained one"
            )
        return None
    path = folder / f"{name}.ckpt" if name in ("last", "best") else Path(name).expanduser()
    found = _existing(path)
    if found is not None:
        try:
            require_undamaged(found)
        except ValueError as damage:
            if name != "last":
                raise
            found = _before(found, damage)
        if name not in ("last", "best") or not is_of_another_run(found, root):
            return str(found)
        if command != "fit" or name != "last":
            raise ValueError(
                f"--ckpt_path {name}: {found} is of an earlier run than the last one in {root}; "
                f"--ckpt_path {found} takes it all the same"
            )
    if name == "last" and command == "fit":
        earlier = f"; {found} is of an earlier one, --ckpt_path {found} takes it" if found else ""
        rank_zero_info(f"there is no {path} of this run yet: starting from the beginning{earlier}")
        return None
    there = sorted(str(p) for p in folder.glob("*.ckpt"))
    raise ValueError(
        f"--ckpt_path {name}: there is no {path}; "
        + (f"there are: {', '.join(there)}" if there else f"{folder} holds no checkpoint")
        + ("; none starts from the beginning" if command == "fit" else "")
    )


def _existing(path: Path) -> Path | None:
    with suppress(FileNotFoundError):
        return existing_folder(path)
    return None


def _before(last: Path, damage: ValueError) -> Path:
    """Return the checkpoint before ``last``, and say why."""
    try:
        previous = existing_folder(last.with_name("previous.ckpt"))
        require_undamaged(previous)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{damage}; and the one before cannot be used either: {error}") from None
    rank_zero_info(f"{damage}. The one before it is used: {previous}")
    return previous


def fill_learning_rate(model: Namespace, given: Namespace) -> None:
    """Give the optimizer the module's or the adapter's learning rate unless it has its own.

    Without this an optimizer named without ``lr`` would train at its class's default.

    Args:
        model: The module's arguments, with an optimizer; changed in place.
        given: Those of them that the user gave.

    Raises:
        ValueError: If both the module and the optimizer are given a rate.
    """
    arguments = model.optimizer.init_args
    if "lr" not in arguments:
        return
    if given.get("optimizer.init_args.lr") is not None:
        if model.learning_rate is not None:
            raise ValueError(
                f"two learning rates: model.learning_rate is {model.learning_rate} and "
                f"model.optimizer.init_args.lr is {arguments.lr}; leave one out"
            )
    elif model.learning_rate is not None:
        # moved, not copied, so that the saved config.yaml does not hold two
        arguments.lr, model.learning_rate = model.learning_rate, None
    else:
        adapter: Any = find_class(model.adapter.class_path, (Adapter,))
        arguments.lr = adapter.learning_rate


def fill_adapter(model: Namespace, given: Namespace | None, checkpoint: str | None) -> None:
    """Write out the adapter of ``model.init_from``, so that the saved config.yaml names it.

    Args:
        model: The module's arguments, with ``init_from``; changed in place.
        given: Those of them that the user gave.
        checkpoint: The one that is read, which also says what the adapter is where ``init_from``
            has gone since the run began.

    Raises:
        ValueError: If there is no such adapter, or a given one is of another kind.
    """
    try:
        _, own = adapter_to_continue(model.init_from)
    except ValueError as error:
        if checkpoint is None:
            raise
        rank_zero_info(f"{error}; the adapter is that of {checkpoint}")
        model.init_from = checkpoint
        _, own = adapter_to_continue(checkpoint)
    name = type(own).__name__
    if given is None or given.get("adapter") is None:
        path = f"{type(own).__module__}.{name}"
        model.adapter = Namespace(class_path=path, init_args=Namespace(own.options()))
    elif (configured := model.adapter.class_path.rpartition(".")[2]) != name:
        raise ValueError(conflict(configured, model.init_from, own))


def default_loggers(root: str) -> list[Logger]:
    """Return a CSV and a TensorBoard logger that write to ``<root>/logs/version_<n>``."""
    csv = CSVLogger(root, name="logs")
    return [csv, TensorBoardLogger(root, name="logs", version=csv.version)]
