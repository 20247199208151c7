"""The files of an adapter's folder as programs write them: HF PEFT's one, several parts, MLX's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from peft_lightning.adapters.mlx import hf_tensors
from peft_lightning.files import require_undamaged
from peft_lightning.messages import UserError, shortened

LARGEST_JSON = 2**26  # bytes; options of an adapter, or an index of its parts
CONFIG_FILE = "adapter_config.json"
_TO_SAFETENSORS = (
    "import torch; from safetensors.torch import save_file; "
    "t = torch.load('adapter_model.bin', weights_only=True); "
    "save_file({k: v.contiguous() for k, v in t.items()}, 'adapter_model.safetensors')"
)


class AdapterFiles(NamedTuple):
    """The files with an adapter's tensors.

    Args:
        parts: Each with some of them.
        is_mlx: Whether they are MLX's and not HF PEFT's.
    """

    parts: list[Path]
    is_mlx: bool = False

    def names(self) -> list[str]:
        """Return the tensors' names in the files.

        Raises:
            UserError: If a file is damaged.
        """
        found: list[str] = []
        for part in self.parts:
            try:
                with safe_open(part, "pt") as file:  # reads and validates the header
                    found += list(file.keys())
            except SafetensorError as error:
                raise UserError(f"{part} cannot be read, it may be damaged: {error}") from None
        return found

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by their names in the files; HF PEFT's names for those of MLX."""
        found: dict[str, Tensor] = {}
        for part in self.parts:
            found |= load_file(part)
        return hf_tensors(found) if self.is_mlx else found


def tensor_files(folder: Path, tensor_file: str) -> AdapterFiles:
    """Return the file of this name in ``folder``, or the parts that its index names.

    Raises:
        FileNotFoundError: If it is not there; says what is, and what to do.
        UserError: If one is damaged or cannot be read.
    """
    index = folder / f"{tensor_file}.index.json"
    is_one = (folder / tensor_file).is_file() or not index.is_file()
    parts = [required(folder, tensor_file)] if is_one else _parts(index)
    require_undamaged(folder, [part.name for part in parts])
    files = AdapterFiles(parts)
    files.names()
    return files


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file ``path``; raise UserError if it holds none."""
    if (size := path.stat().st_size) > LARGEST_JSON:
        raise UserError(f"{path} has {size:,} bytes, and such a file at most {LARGEST_JSON:,}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def required(folder: Path, name: str) -> Path:
    """Return the path of the file ``name``, or raise FileNotFoundError with the files there are."""
    if (path := folder / name).is_file():
        return path
    hint = f"it has {shortened(sorted(p.name for p in folder.iterdir())) or 'nothing'}"
    nested = [str(p.parent) for p in sorted(folder.glob(f"*/{name}"))]
    of_run = sorted(str(p.parent) for p in folder.glob(f"checkpoints/*.ckpt/{name}"))
    if of_run:
        hint = f"it is the folder of a run: give one of its checkpoints, {shortened(of_run)}"
    elif name == CONFIG_FILE and (folder / "config.json").is_file():
        hint = "it is a whole model: give it as --base_model"
    elif len(nested) == 1:
        hint += f"; there is one in {nested[0]}: give that folder"
    elif nested:
        hint += f"; there are {len(nested)} adapters in it: give one of {shortened(nested)}"
    elif "snapshots" in folder.parts and name != CONFIG_FILE:  # the hub's cache
        hint += (
            "; what a repository holds as .bin can run code and is not fetched: if you trust it, "
            "fetch the repository by HF PEFT, PeftModel.from_pretrained, and save_pretrained it"
        )
    elif (folder / name).with_suffix(".bin").is_file():
        hint += (
            "; a .bin file can run code and is not read: if you trust it, save it again as "
            f'safetensors, in that folder: python -c "{_TO_SAFETENSORS}"'
        )
    raise FileNotFoundError(f"{folder} is no adapter folder: no {name} in it; {hint}")


def _parts(index: Path) -> list[Path]:
    """Return the files that an index names, all of which are there."""
    parts = read_json(index).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise UserError(f"{index} needs a weight_map of tensors' names to files")
    found = []
    for name in sorted({str(name) for name in parts.values()}):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{index} names {name!r:.80}, no .safetensors file beside it")
        if not (index.parent / name).is_file():
            raise UserError(
                f"{index.parent} is not complete: {index.name} names {name}, which is not there: "
                "copy all parts into the folder"
            )
        found.append(index.parent / name)
    names = AdapterFiles(found).names()
    if absent := sorted(set(parts) - set(names)):
        raise UserError(f"{index.parent} is not complete: its parts lack {shortened(absent)}")
    return found
