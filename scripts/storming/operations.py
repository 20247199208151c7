"""What the storm disturbs: commands over tiny models, and what each must leave in the end."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import warm_python

ROOT = Path(__file__).parents[2]
LONGEST = 300  # seconds of a run
ROWS = 1500  # of the file that is tokenized by several processes

CONFIG = """\
model:
  base_model: base
  adapter: {class_path: LoRA, init_args: {r: 2}}
  predict_max_new_tokens: 24
data: {train: rows.jsonl, val_fraction: 0.2, predict: rows.jsonl, batch_size: 4, cache_dir: cache}
trainer:
  max_epochs: 2
  accelerator: cpu
  enable_progress_bar: false
  callbacks:
    class_path: peft_lightning.training.checkpoint.AdapterCheckpoint
    init_args: {every_n_steps: 2}
"""
EVERY = "--config run.yaml --trainer.default_root_dir"


@dataclass(frozen=True)
class Operation:
    """A command that is disturbed and started again.

    Args:
        name: What the table calls it.
        lines: Command lines that run at the same time.
        again: The same after a disturbance.
        outputs: Patterns of the files that must be equal.
    """

    name: str
    lines: Sequence[str]
    again: Sequence[str]
    outputs: Sequence[str]

    def result(self, folder: Path) -> dict[str, str]:
        """Return the hash of each file that is compared."""
        files = sorted(file for pattern in self.outputs for file in folder.glob(pattern))
        return {
            str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in files
            if file.is_file()
        }


def _fit(name: str, start: str, outputs: Sequence[str], runs: int = 1) -> Operation:
    lines = [start.replace("RUN", f"run{i}") for i in range(runs)]
    return Operation(name, lines, [f"{line} --ckpt_path last" for line in lines], outputs)


def _write(name: str, line: str, *outputs: str) -> Operation:
    return Operation(name, [line], [f"{line} --overwrite"], outputs)


_WEIGHTS = "run*/checkpoints/{}.ckpt/adapter_model.safetensors"
_ASK = "generate --ckpt_path adapter --file rows.jsonl --output g.jsonl --batch_size 4"
_SWEEP = "sweep --config run.yaml --dir sweep --vary model.adapter.r=1,2 --trainer.max_steps 4"
OPERATIONS = {
    operation.name: operation
    for operation in (
        _fit("fit", f"fit {EVERY} RUN", [_WEIGHTS.format("last"), _WEIGHTS.format("best")]),
        _fit(
            "tokenize",
            f"fit {EVERY} RUN --data.train many.jsonl --trainer.max_steps 1",
            [_WEIGHTS.format("last")],
            runs=3,
        ),
        _write("merge", "merge adapter merged", "merged/*"),
        _write("export", "export adapter a.gguf --type model", "a.gguf*", "a.Modelfile"),
        _write("generate", f"{_ASK} --max_new_tokens 24", "g.jsonl"),
        _write("predict", f"predict {EVERY} done --ckpt_path last --output p.jsonl", "p.jsonl"),
        _write("extract", "extract merged-model x --base_model base --rank 4", "x/adapter*"),
        Operation("sweep", [_SWEEP], [_SWEEP], ["sweep/*/checkpoints/last.ckpt/*.safetensors"]),
    )
}


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a run: one thread, and caches of its own."""
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    own |= {"XDG_CACHE_HOME": str(folder.parent / "caches"), "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **own}


def start(line: str, folder: Path) -> Any:
    """Start a command in a fork of a process that has made the imports; its output is a file."""
    with (folder.parent / "output.txt").open("a") as said:
        return warm_python.start(
            ["-m", "peft_lightning", *line.split()],
            cwd=folder,
            env=environment(folder),
            stdout=said,
            stderr=said,
        )


def output(folder: Path) -> str:
    """Return what the commands have said since this was last asked."""
    file = folder.parent / "output.txt"
    text = file.read_text(errors="replace") if file.exists() else ""
    file.write_text("")
    return text


def finish(operation: Operation, folder: Path) -> list[str]:
    """Let an operation end; return what is wrong with that.

    What had already ended may be told so: that its output is there, or the run is finished.
    """
    is_begun = (folder / "begun").exists()
    lines = operation.again if is_begun else operation.lines
    output(folder)
    programs = [start(line, folder) for line in lines]
    faults = []
    for line, program in zip(lines, programs, strict=True):
        try:
            status = program.wait(LONGEST)
        except subprocess.TimeoutExpired:
            program.kill()
            faults.append(f"{line} does not end within {LONGEST} s")
            continue
        if status != 0:
            faults.append(f"{line} ends with status {status}")
    if faults:
        faults[-1] += ": " + " | ".join(output(folder).strip().splitlines()[-3:])[-600:]
    return faults


def prepare(folder: Path) -> None:
    """Write a base, rows, a config, a finished run, its adapter and its merged model."""
    from tiny_run import write_base, write_rows

    folder.mkdir()
    write_base(folder / "base")
    write_rows(folder / "rows.jsonl", 24)
    write_rows(folder / "many.jsonl", ROWS)
    (folder / "run.yaml").write_text(CONFIG)
    commands: list[Callable[[], str] | str] = [
        f"fit {EVERY} done",
        "merge done/checkpoints/last.ckpt merged-model --verify false",
    ]
    for line in commands:
        program = start(str(line), folder)
        if program.wait(LONGEST) != 0:
            raise SystemExit(f"{line}: {output(folder)}")
    subprocess.run(["cp", "-r", "done/checkpoints/last.ckpt", "adapter"], cwd=folder, check=True)
