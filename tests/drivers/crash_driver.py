"""Runs a command again and again, killed before each of its changes to the disk in turn.

Usage: python crash_driver.py CASE FOLDER BASE, with the adapter ``a`` in FOLDER. Prints a line of
JSON for each run: what it was killed at, and the digests of the files that it left.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from killing import killed_at
from peft_lightning.__main__ import main
from peft_lightning.files import SUMS_FILE, require_undamaged
from tiny_run import fit

Action = Callable[[], object]


def run(line: str) -> None:
    assert main(line.split()) == 0, line


def command(out: str, old: str, new: str) -> tuple[str, Action, Action]:
    """Return what a command writes, and two versions of it to be told apart."""
    return out, lambda: run(old), lambda: run(new)


def cases(base: Path) -> dict[str, Callable[[], tuple[str, Action, Action]]]:
    export = "export a a.gguf"
    merge = "merge a out --overwrite --verify false --dtype"
    ask = "generate --ckpt_path a --file rows.jsonl --output out --overwrite --batch_size 8"
    ask += " --max_new_tokens"
    answer = "predict --config run.yaml --overwrite --ckpt_path last --model.predict_max_new_tokens"
    return {
        "combine": lambda: command("out", "combine out a", "combine out a=0.5 --overwrite"),
        "merge": lambda: command("out", f"{merge} float32", f"{merge} bfloat16"),
        "export": lambda: command("a.gguf", export, f"{export} --overwrite --dtype float16"),
        "generate": lambda: command("out", f"{ask} 1", f"{ask} 2"),
        "predict": lambda: predictions(f"{answer} 1", f"{answer} 2"),
        "checkpoint": lambda: saving(base),
    }


def predictions(old: str, new: str) -> tuple[str, Action, Action]:
    run("fit --config run.yaml")
    return command("runs/run/predictions.jsonl", old, new)


def saving(base: Path) -> tuple[str, Action, Action]:
    """Return the saves of a run's step 2 and of a step after it, and its summary's."""
    data = {"val_fraction": 0.1}  # of so few rows none is held out by itself
    trainer = fit(base, Path("rows.jsonl"), Path("run"), data=data, max_steps=2, max_epochs=-1)
    checkpoints, parameters = trainer.checkpoint_callback, trainer.lightning_module.parameters()
    trained = [p for p in parameters if p.requires_grad]
    summary = next(c for c in trainer.callbacks if type(c).__name__ == "Summary")

    def save(value: float) -> None:
        with torch.no_grad():
            for parameter in trained:
                parameter.fill_(value)
        checkpoints._saved_step = -1
        checkpoints.save_now(trainer)
        summary._write(trainer, trainer.lightning_module, str(value))

    def twice() -> None:
        save(1.0)
        save(2.0)

    return "run", twice, lambda: save(3.0)


def digests(place: Path) -> dict[str, str]:
    """Return the digest of each file, but for what is of its own in each run.

    That is a trainer's state, which must be whole, and the peak memory and seconds in a summary.
    """
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    found = {
        str(f.relative_to(place)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in files
        if f.is_file() and not any(part.endswith(".tmp") for part in f.parts)
    }
    for name in found:
        if name.endswith("/trainer_state.pt"):
            require_undamaged((place / name).parent)
            found[name] = found[name.replace("trainer_state.pt", SUMS_FILE)] = "undamaged"
        if name == "summary.json":
            summary = json.loads((place / name).read_text())
            del summary["peak_memory_bytes"], summary["seconds"]
            found[name] = json.dumps(summary)
    return found


def copy(source: Path, target: Path) -> None:
    """Restore ``target``, and leave what killed runs have left beside what it holds."""
    if source.is_file():
        shutil.copyfile(source, target)
        return
    for file in target.rglob("*"):
        if file.is_file() and not any(part.endswith(".tmp") for part in file.parts):
            file.unlink()
    shutil.copytree(source, target, dirs_exist_ok=True)


if __name__ == "__main__":
    name, folder, base = sys.argv[1], *map(Path, sys.argv[2:])
    os.chdir(folder)
    out, old, new = cases(base)[name]()
    place, kept, log = folder / out, folder.parent / f"{name} old", folder.parent / f"{name}.log"
    old()
    copy(place, kept)
    print(json.dumps({"killed": "old", "left": digests(place)}))
    count, killed = 0, "-"
    while killed:
        copy(kept, place)
        count += 1
        killed = killed_at(count, folder, new, log)
        print(json.dumps({"killed": killed, "left": digests(place)}), flush=True)
    beside = place / "checkpoints" if name == "checkpoint" else place.parent
    print(json.dumps({"killed": "files", "left": {p.name: "" for p in beside.iterdir()}}))
