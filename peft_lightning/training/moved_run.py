"""A run whose folder was moved or is reached by another path keeps what it knows of its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint

PATHS = ("best_model_path", "last_model_path", "kth_best_model_path")


def follow_moved_folder(trainer: Any, checkpoint: dict[str, Any]) -> None:
    """Let the checkpoint callbacks find their files where they are now.

    Lightning's ``ModelCheckpoint`` forgets its best score if the absolute path of its folder is
    another one, and the next validation replaces the best checkpoint, whatever its score.

    Args:
        trainer: Whose folder holds the run of the checkpoint, also if it was moved or copied.
        checkpoint: About to be loaded; the states of its callbacks are changed in place.
    """
    states = checkpoint.get("callbacks", {})
    for callback in trainer.checkpoint_callbacks:
        state = states.get(callback.state_key)
        if isinstance(callback, ModelCheckpoint) and state and callback.dirpath:
            states[callback.state_key] = _moved(state, str(callback.dirpath))


def _moved(state: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return the state of a callback whose files are in ``folder``; as it is if none of them is."""
    saved_in = state.get("dirpath")
    if saved_in is None or saved_in == folder:
        return state

    def moved(path: str) -> str:
        here = Path(folder) / Path(path).name
        is_of_it = path and Path(path).parent == Path(saved_in)
        return str(here) if is_of_it and here.exists() else ""

    best = {moved(path): score for path, score in state.get("best_k_models", {}).items()}
    best.pop("", None)
    if not best:
        return state
    paths = {name: moved(state[name]) for name in PATHS if isinstance(state.get(name), str)}
    return {**state, **paths, "best_k_models": best, "dirpath": folder}
