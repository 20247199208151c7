"""Runs fits in forked children, kills them with SIGKILL, and lets others go on where they were.

Usage: python resume_driver.py BASE ROWS FOLDER, scenarios as JSON on standard input. One process
imports once; each run is a fork of it, so a kill costs milliseconds, not an import. A scenario is
a chain of runs in one folder: one for each of its ``kills``, and one that is left alone. A kill is

    {"batch": n}                 after batch n is trained, before it is saved
    {"save": n}                  in the run's n-th save, when its first file is written
    {"stage": s, "event": n}     at the n-th call or return of a function, counted within stage s

Prints the exit status of each run; the kills' places in the code go to ``kills.jsonl``.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from peft_lightning.adapters import LoRA, PromptTuning
from peft_lightning.training.checkpoint import AdapterCheckpoint
from tiny_run import fit

STAGES = {
    "_TrainingEpochLoop.advance": "step",
    "AdapterCheckpoint.save_now": "save",
    "_EvaluationLoop.run": "validation",
    "_FitLoop.on_advance_end": "epoch end",
}


class Moment(Callback):
    """Kills the process at the n-th call or return of a function within a stage of training.

    Calls of C functions count as well: before and after each write, rename and fsync.
    """

    def __init__(self, folder: Path, stage: str, event: int) -> None:
        self.folder, self.stage, self.left = folder, stage, event
        self.depth = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        sys.setprofile(self._count)

    def _count(self, frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "return") and STAGES.get(frame.f_code.co_qualname) == self.stage:
            self.depth += 1 if event == "call" else -1
        if self.depth > 0:
            self.left -= 1
            if self.left == 0:
                sys.setprofile(None)
                place = f"{event} {Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                note_kill(self.folder, {"stage": self.stage, "at": place})


def note_kill(folder: Path, kill: dict[str, Any]) -> None:
    with (folder / "kills.jsonl").open("a") as out:
        out.write(json.dumps(kill) + "\n")
    os.kill(os.getpid(), signal.SIGKILL)


class Trace(Callback):
    """Appends each batch and step, in bits, to a file; kills the process where it is told to."""

    def __init__(self, file: Path, kill_batch: int | None, kill_in_save: int | None) -> None:
        self.file, self.kill_batch, self.kill_in_save = file, kill_batch, kill_in_save
        self.saves = 0

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        row = {
            "batch": trainer.fit_loop.epoch_loop.total_batch_idx,
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "ids": batch["input_ids"].flatten().tolist(),
            "loss": outputs["loss"].double().item().hex(),
            "lr": trainer.optimizers[0].param_groups[0]["lr"].hex(),
            "noise": torch.get_rng_state().sum().item(),
        }
        with self.file.open("a") as out:
            out.write(json.dumps(row) + "\n")
        if self.kill_batch == row["batch"]:
            note_kill(self.file.parent, {"stage": "step"})

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        self.saves += 1
        if self.saves == self.kill_in_save:
            original = os.fsync

            def fsync(descriptor: int) -> None:  # files are written, the folder not yet renamed
                original(descriptor)
                note_kill(self.file.parent, {"stage": "save"})

            os.fsync = fsync


def run(base: Path, rows: Path, folder: Path, scenario: dict[str, Any], kill: Any) -> None:
    adapter = (
        PromptTuning(num_virtual_tokens=3)
        if scenario.get("prompt")
        else LoRA(r=2, lora_dropout=scenario.get("dropout", 0.1), **scenario.get("lora", {}))
    )
    callbacks: list[Callback] = [Trace(folder / "trace.jsonl", kill.get("batch"), kill.get("save"))]
    if "stage" in kill:
        callbacks.append(Moment(folder, kill["stage"], kill["event"]))
    trainer = fit(
        base,
        rows,
        folder / "run",
        adapter=adapter,
        callbacks=[*callbacks, AdapterCheckpoint(every_n_steps=scenario.get("every", 1))],
        ckpt_path="last" if (folder / "run/checkpoints/last.ckpt").is_dir() else None,
        data=scenario.get("data"),
        module=scenario.get("module"),
        **{"log_every_n_steps": 3, **scenario.get("trainer", {})},
    )
    tensors = trainer.lightning_module.state_dict()
    bits = {name: tensor.view(torch.int32).tolist() for name, tensor in tensors.items()}
    (folder / "final.json").write_text(json.dumps(bits))


def fork(base: Path, rows: Path, folder: Path, scenario: dict[str, Any], kill: Any) -> int:
    """Return the exit status of one run."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        with (folder / "log.txt").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        try:
            run(base, rows, folder, scenario, kill)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    base, rows, folder = map(Path, sys.argv[1:])
    for scenario in json.load(sys.stdin):
        target = folder / scenario["name"]
        target.mkdir(parents=True, exist_ok=True)
        status = [
            fork(base, rows, target, scenario, kill) for kill in [*scenario.get("kills", []), {}]
        ]
        print(json.dumps({"name": scenario["name"], "status": status}))
