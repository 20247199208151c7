"""Checkpoints that are adapter folders: how Lightning's checkpoints are written and read.

A checkpoint is a folder of a few MB: the adapter's own files (``adapter_config.json``,
``adapter_model.safetensors``, ``peft_lightning.json``), the tokenizer of the run with the chat
template of its rows, and ``trainer_state.pt`` with everything else that Lightning saves. Nothing of
the frozen base model is in it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from safetensors.torch import load_file

from peft_lightning.adapters.folder import ADDED_FILE, write_files
from peft_lightning.files import existing_folder, remove_folder, require_undamaged, sealed_folder
from peft_lightning.training.checkpoint_facts import (
    check_checkpoint,
    checkpoint_facts,
    files_beside,
)
from peft_lightning.training.lightning_parts import unfreeze_as_saved
from peft_lightning.training.run_tokenizer import RunTokenizer
from peft_lightning.training.saved_state import read_state, write_state

STATE_FILE = "trainer_state.pt"
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class AdapterCheckpointIO(CheckpointIO):
    """Writes Lightning's checkpoint as an adapter folder, atomically, and reads it back.

    Args:
        module: The ``CausalLMModule`` whose checkpoints are written, and compared when they are
            read; None to read without comparing.
    """

    def __init__(self, module: Any = None) -> None:
        self.module = module
        self._tokenizer = RunTokenizer()
        self._told: set[str] = set()  # types of which ``write_state`` has warned

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        state = {**checkpoint, **checkpoint_facts(self.module)}
        tensors = state.pop("state_dict")
        names = self.module.adapter.tensor_names(self.module.model)
        added = {name: tensor for name, tensor in tensors.items() if name not in names}
        tensors = {name: tensor for name, tensor in tensors.items() if name in names}
        tensor_file, texts = files_beside(self.module, state, added, self._tokenizer)
        path = Path(path)
        previous = path.with_name(PREVIOUS) if path.name == LAST else None
        try:
            with sealed_folder(path, previous) as folder:
                write_files(folder, tensor_file, tensors, texts)
                if added:
                    write_files(folder, ADDED_FILE, added, {})
                write_state(state, folder / STATE_FILE, self._told)
        except (OSError, RuntimeError) as error:
            if (refusal := _of_the_system(error)) is None:
                raise
            raise OSError(
                f"{path} cannot be written: {refusal.strerror or refusal}. The checkpoints that "
                "are there are whole: --ckpt_path last goes on from the last one"
            ) from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        folder = existing_folder(Path(path))
        if not (folder / STATE_FILE).is_file():
            raise FileNotFoundError(
                f"{path} is no checkpoint of a training run: it has no {STATE_FILE}. To start a "
                "new run from an adapter's weights, give it as model.init_from"
            )
        require_undamaged(folder)
        state = read_state(folder / STATE_FILE, weights_only)
        state["state_dict"] = {
            name: tensor
            for file in sorted(folder.glob("*.safetensors"))
            for name, tensor in load_file(file).items()
        }
        if self.module is not None:
            check_checkpoint(self.module, state)
            unfreeze_as_saved(self.module, state)
        return state

    def remove_checkpoint(self, path: str | Path) -> None:
        remove_folder(Path(path))


class WrappedCheckpointIO(CheckpointIO):
    """Hands everything to a plugin that wraps another, such as Lightning's ``AsyncCheckpointIO``.

    ``Strategy.checkpoint_io`` would make such a plugin wrap a ``TorchCheckpointIO`` whenever it is
    asked for.

    Args:
        wrapper: The plugin.
        wrapped: What it wraps.
    """

    def __init__(self, wrapper: Any, wrapped: AdapterCheckpointIO) -> None:
        self.wrapper = wrapper
        wrapper.checkpoint_io = wrapped

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.wrapper.save_checkpoint(*args, **kwargs)

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        loaded: dict[str, Any] = self.wrapper.load_checkpoint(*args, **kwargs)
        return loaded

    def remove_checkpoint(self, path: str | Path) -> None:
        self.wrapper.remove_checkpoint(path)

    def teardown(self) -> None:
        self.wrapper.teardown()


def _of_the_system(error: BaseException | None) -> OSError | None:
    """Return what the system refused; torch's writer raises an error of its own over it."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error
