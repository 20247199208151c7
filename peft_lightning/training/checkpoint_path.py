"""The checkpoint that ``--ckpt_path`` selects."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from peft_lightning.files import existing_folder, require_undamaged
from peft_lightning.messages import UserError
from peft_lightning.training.run_identity import is_continued_by_this_job, is_of_another_run

NO_CHECKPOINT = "none"  # as a value of --ckpt_path


def checkpoint_path(command: str, name: str | None, root: Path) -> str | None:
    """Return the checkpoint that ``--ckpt_path`` selects.

    Args:
        command: fit, validate, test or predict.
        name: last, best or a path; none, or None, for no checkpoint.
        root: The folder of the run.

    Returns:
        The path, or None to start without a checkpoint. ``fit`` also starts without one if ``name``
        is last and this run has none yet. If last is damaged, the checkpoint before it is used. A
        SLURM job that was requeued continues from last, whatever ``name`` is.

    Raises:
        UserError: If the checkpoint does not exist, is damaged, or belongs to another run than
            the folder; the message lists those that exist.
    """
    if SLURMEnvironment.detect() and (foreign := sorted(root.glob("hpc_ckpt_*"))):
        raise UserError(
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
            raise UserError(
                f"--ckpt_path {name}: {found} is of an earlier run than the last one in {root}; "
                f"--ckpt_path {found} takes it all the same"
            )
    if name == "last" and command == "fit":
        earlier = f"; {found} is of an earlier one, --ckpt_path {found} takes it" if found else ""
        rank_zero_info(f"there is no {path} of this run yet: starting from the beginning{earlier}")
        return None
    there = sorted(str(p) for p in folder.glob("*.ckpt"))
    raise UserError(
        f"--ckpt_path {name}: there is no {path}; "
        + (f"there are: {', '.join(there)}" if there else f"{folder} holds no checkpoint")
        + ("; none starts from the beginning" if command == "fit" else "")
    )


def _existing(path: Path) -> Path | None:
    with suppress(FileNotFoundError):
        return existing_folder(path)
    return None


def _before(last: Path, damage: ValueError) -> Path:
    """Return the checkpoint before ``last``, and log why it is used."""
    try:
        previous = existing_folder(last.with_name("previous.ckpt"))
        require_undamaged(previous)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"{damage}; and the one before cannot be used either: {error}") from None
    rank_zero_info(f"{damage}. The one before it is used: {previous}")
    return previous
