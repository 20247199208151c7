"""What makes the folder of another program from one of HF PEFT's, and changes of a base."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tiny import tiny_model

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# ---- changes of a folder -----------------------------------------------------------------------


def edit(**values: Any) -> Callable[[Path], None]:
    """Return a change of the config."""

    def change(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, **values}))

    return change


def rename(old: str, new: str) -> Callable[[Path], None]:
    """Return a change of the tensors' names by a regular expression."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / TENSORS)
        save_file({re.sub(old, new, n): t for n, t in tensors.items()}, folder / TENSORS)

    return change


def in_parts(folder: Path) -> None:
    """Split the tensors over two files with an index."""
    tensors = load_file(folder / TENSORS)
    (folder / TENSORS).unlink()
    names = [f"adapter_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    places = {name: names[i % 2] for i, name in enumerate(tensors)}
    for part in names:
        save_file({n: t for n, t in tensors.items() if places[n] == part}, folder / part)
    index = {"metadata": {}, "weight_map": places}
    (folder / f"{TENSORS}.index.json").write_text(json.dumps(index))


def without_a_part(folder: Path) -> None:
    in_parts(folder)
    (folder / "adapter_model-00002-of-00002.safetensors").unlink()


def as_mlx(**options: Any) -> Callable[[Path], None]:
    """Return a change to mlx-lm's files: matrices transposed, ``scale`` the whole factor."""

    def change(folder: Path) -> None:
        config, tensors = json.loads((folder / CONFIG).read_text()), load_file(folder / TENSORS)
        ends = {"lora_A.weight": "lora_a", "lora_B.weight": "lora_b", "lora_magnitude_vector": "m"}
        found = {}
        for name, tensor in tensors.items():
            stem, end = next((name.removesuffix(e), new) for e, new in ends.items() if e in name)
            tensor = tensor.T.contiguous() if tensor.ndim == 2 else tensor
            found[stem.removeprefix(PREFIX) + end] = tensor
        save_file(found, folder / "adapters.safetensors")
        (folder / TENSORS).unlink()
        scale = config["lora_alpha"] / config["r"]
        parameters = {"rank": config["r"], "scale": scale, "dropout": 0.0, "keys": ["x"], **options}
        kind = "dora" if config["use_dora"] else "lora"
        mlx = {"fine_tune_type": kind, "model": "m", "num_layers": 2, "lora_parameters": parameters}
        (folder / CONFIG).write_text(json.dumps(mlx))

    return change


def in_subfolders(*names: str) -> Callable[[Path], None]:
    """Return a change to several adapters, each in a folder of its name."""

    def change(folder: Path) -> None:
        files = [(file.name, file.read_bytes()) for file in folder.iterdir()]
        for name in names:
            (folder / name).mkdir()
            for file, content in files:
                (folder / name / file).write_bytes(content)
        for file, _ in files:
            (folder / file).unlink()

    return change


def as_bin(folder: Path) -> None:
    torch.save(load_file(folder / TENSORS), folder / "adapter_model.bin")
    (folder / TENSORS).unlink()


def with_base(folder: Path, model: Any = None, adapted_only: bool = False) -> None:
    """Add the frozen weights of a Llama, as the full state dict of a wrapped model has them."""
    tensors = load_file(folder / TENSORS)
    for name, weight in (model or tiny_model("llama")).named_parameters():
        owner, _, part = name.rpartition(".")
        adapted = f"{PREFIX}{owner}.lora_A.weight" in tensors
        if adapted or not adapted_only:
            tensors[f"{PREFIX}{owner}.{'base_layer.' * adapted}{part}"] = weight.detach()
    save_file(tensors, folder / TENSORS)


def of_zero3(folder: Path) -> None:
    """Empty the tensors, as a process has them that holds a part of each."""
    tensors = load_file(folder / TENSORS)
    save_file({name: torch.zeros(0) for name in tensors}, folder / TENSORS)


def of_compiled(folder: Path) -> None:
    """Name the layers as a compiled model has them, in the tensors' names and the config."""
    tensors = load_file(folder / TENSORS)
    new = {n.replace(PREFIX, f"{PREFIX}_orig_mod.", 1): t for n, t in tensors.items()}
    save_file(new, folder / TENSORS)
    names = {n.removeprefix(PREFIX).partition(".lora_")[0] for n in new}
    edit(target_modules=sorted(names))(folder)


def with_images(scale: float) -> Callable[[Path], None]:
    """Return a change to an adapter of a model of text and images, with updates of both."""

    def change(folder: Path) -> None:
        rename(r"model\.model\.", "model.model.language_model.")(folder)
        stem = f"{PREFIX}model.visual.blocks.0.attn.q_proj"
        own = {f"{stem}.lora_A.weight": torch.ones(4, 8), f"{stem}.lora_B.weight": torch.ones(8, 4)}
        own[f"{stem}.lora_B.weight"] *= scale
        save_file({**load_file(folder / TENSORS), **own}, folder / TENSORS)

    return change


def with_head(folder: Path) -> None:
    """Add the head of a classifier, as HF PEFT saves it."""
    tensors = load_file(folder / TENSORS)
    save_file({**tensors, f"{PREFIX}score.weight": torch.ones(2, 32)}, folder / TENSORS)
    edit(task_type="SEQ_CLS", modules_to_save=["classifier", "score"])(folder)


# ---- changes of a base -------------------------------------------------------------------------


def resized(seed: int) -> Callable[[Any], None]:
    """Return a change of a base: four rows more, random ones."""

    def change(model: Any) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model.resize_token_embeddings(model.config.vocab_size + 4, mean_resizing=False)

    return change


def retrained(model: Any) -> None:
    """Change the embeddings, as a program does that trains them beside HF PEFT."""
    generator = torch.Generator().manual_seed(3)
    for weight in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)


def row_changed(model: Any) -> None:
    """Change one row of the input embedding."""
    model.get_input_embeddings().weight.data[5] += 0.5
