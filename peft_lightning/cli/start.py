"""From what a command starts: a checkpoint, the adapters that are named, or ``model.init_from``."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from peft_lightning.cli.defaults import fill_adapter
from peft_lightning.data.datamodule import SFTDataModule
from peft_lightning.data.trained_prompts import common_format
from peft_lightning.inference.load import named_folders
from peft_lightning.inference.prompt_formats import formats_of
from peft_lightning.messages import UserError
from peft_lightning.training.checkpoint_path import NO_CHECKPOINT, checkpoint_path, require_free


class NothingLeftError(Exception):
    """A run that is finished is asked to go on; says so."""


@rank_zero_only
def require_writable(root: Path) -> None:
    """Raise UserError if the run's folder cannot be written to; leave nothing behind.

    Args:
        root: Need not be there.
    """
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=root):
            pass
    except OSError as error:
        reason = "Not a directory" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(
            f"trainer.default_root_dir {root} cannot be written: {reason}; give one that can"
        ) from error
    finally:
        for folder in missing:
            with suppress(OSError):  # another process may have used it
                folder.rmdir()


def checkpoint_to_start_from(command: str, config: Namespace, root: Path) -> str | None:
    """Return the checkpoint of a command; None for a start from nothing, or from adapters.

    Args:
        command: fit, validate, test or predict.
        config: Its configuration.
        root: The run's folder.

    Raises:
        UserError: If there is no such checkpoint, the folder holds a finished run that ``fit``
            would replace, or both a checkpoint and adapters are given.
    """
    if not config.get("adapter"):
        found = checkpoint_path(command, config.ckpt_path, root)
        if command == "fit" and found is None and not config.trainer.fast_dev_run:
            require_free(root, config.ckpt_path, config.overwrite)
        return found
    if config.ckpt_path in (None, NO_CHECKPOINT):
        return None
    raise UserError(
        "give either --ckpt_path or --adapter, which takes a checkpoint too: "
        f"--adapter NAME={config.ckpt_path}"
    )


def take_init_from(section: Namespace, given: Namespace, ckpt_path: str | None) -> None:
    """Fill the adapter from ``model.init_from``; say so if it is not read.

    Args:
        section: The module's arguments; changed in place.
        given: Those that the user gave.
        ckpt_path: The checkpoint from which the run goes on, whose weights are taken then.
    """
    fill_adapter(section, given, ckpt_path)
    if ckpt_path is not None:
        rank_zero_info(
            f"model.init_from {section.init_from} is not read: the weights are those of {ckpt_path}"
        )


def use_trained_prompts(
    model: Any, datamodule: Any, config: Namespace, given: Namespace | None
) -> None:
    """Take the tokenizer and the prompts of the adapters; options that are given win.

    Args:
        model: The ``CausalLMModule`` that answers.
        datamodule: Of the rows; one of the user's is left alone.
        config: The command's configuration, which names the adapters.
        given: The options of the data that the user gave.
    """
    folders = named_folders(config.get("adapter"), config.ckpt_path)
    model.tokenizer_folder = next(map(Path, folders.values()), None)
    if isinstance(datamodule, SFTDataModule):
        names = [name for name, value in vars(given or Namespace()).items() if value is not None]
        datamodule.use_prompt_format(common_format(formats_of(folders)), names)
