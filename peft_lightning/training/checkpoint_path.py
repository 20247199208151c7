"""The checkpoint that ``--ckpt_path`` selects."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from peft_lightning.files import existing_folder, require_undamaged
from peft_lightning.messages import UserError
from peft_lightning.training.checkpoint_io import STATE_FILE
from peft_lightning.training.run_identity import (
    is_continued_by_this_job,
    is_of_another_run,
    read_facts,
    step_of,
)

NO_CHECKPOINT = "none"  # as a value of --ckpt_path


def checkpoint_path(command: str, name: str | None, root: Path) -> str | None:
    """Return the checkpoint that ``--ckpt_path`` selects.

    Args:
        command: fit, validate, test or predict.
        name: last, best or a path; none, or None, for no checkpoint.
        root: The folder of the run.

    Returns:
        The path, or None to start without a checkpoint. ``fit`` also starts without one if ``name``
        is last and this run has none yet. If last is damaged or gone, the newest whole checkpoint
        of the run is used. A SLURM job that was requeued continues from last, whatever ``name`` is.

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
    path = folder / f"{name}.ckpt" if name in ("last", "best") else _inside(Path(name).expanduser())
    found = _existing(path)
    if name == "last" and command == "fit":
        found = _newest(folder, found, root)
    elif found is not None:
        require_undamaged(found)
    if found is not None:
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
    is_file = f"{path} is a file, and a checkpoint is a folder"
    raise UserError(
        f"--ckpt_path {name}: {is_file if path.is_file() else f'there is no {path}'}; "
        + (f"there are: {', '.join(there)}" if there else f"{folder} holds no checkpoint")
        + ("; none starts from the beginning" if command == "fit" else "")
    )


def _existing(path: Path) -> Path | None:
    with suppress(FileNotFoundError):
        return existing_folder(path)
    return None


def _inside(path: Path) -> Path:
    """Return the checkpoint that is meant; the folder of a run means its last one."""
    last = path / "checkpoints" / "last.ckpt"
    return last if not (path / STATE_FILE).exists() and last.is_dir() else path


def _newest(folder: Path, last: Path | None, root: Path) -> Path | None:
    """Return ``last`` if it is whole, else the newest checkpoint of the run that is, and log why.

    Args:
        folder: That of the run's checkpoints.
        last: Its last one, None if that is gone.
        root: The folder of the run.

    Raises:
        UserError: If there are checkpoints and none of them is whole.
    """
    damage = "it is not there"
    if last is not None:
        if (fault := _fault(last)) is None:
            return last
        damage = fault
    others = [path for path in folder.glob("*.ckpt") if path != last and path.is_dir()]
    others = [path for path in others if not is_of_another_run(path, root)]
    faults = {path: _fault(path) for path in others}
    whole = [path for path, fault in faults.items() if fault is None]
    if not whole:
        if last is None:
            return None
        found = [str(fault) for fault in faults.values()] or ["there is no other checkpoint"]
        raise UserError("; ".join([damage, *found]))
    newest = max(whole, key=step_of)
    named = damage if str(folder) in damage else f"{folder / 'last.ckpt'}: {damage}"
    rank_zero_info(
        f"{named}. The newest whole checkpoint of this run is used: {newest}, of step "
        f"{step_of(newest):,}"
    )
    return newest


def _fault(checkpoint: Path) -> str | None:
    """Return why a run cannot go on from a folder, None if it can."""
    try:
        require_undamaged(checkpoint)
    except ValueError as damage:
        return str(damage)
    if not (checkpoint / STATE_FILE).is_file():
        return f"{checkpoint} is damaged: it has no {STATE_FILE}"
    return None


def require_free(root: Path, name: str | None, overwrite: bool) -> None:
    """Check that a ``fit`` that begins anew replaces no checkpoints without being told to.

    Args:
        root: The folder of the run.
        name: ``--ckpt_path`` as it was given: "none" begins anew where a run has not finished.
        overwrite: Whether to replace what is there.

    Raises:
        UserError: If checkpoints of a run are there; says what can be done.
    """
    if overwrite or not any((root / "checkpoints").glob("*.ckpt")):
        return
    summary = read_facts(root / "summary.json")
    finished = summary.get("status") == "finished"
    if name == NO_CHECKPOINT and not finished:
        return
    steps, loss = summary.get("steps"), summary.get("best_val_loss")
    what = f"a finished run of {steps:,} steps" if finished else "a run that has not finished"
    what += f" (val/loss {loss:.4g} at best)" if finished and loss is not None else ""
    anew = "--overwrite replaces it" if finished else "--ckpt_path none begins anew"
    raise UserError(
        f"{root} holds {what}: --ckpt_path last goes on from it, --trainer.default_root_dir names "
        f"another folder, {anew}"
    )
