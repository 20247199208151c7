"""Runs fits in forked children, kills them with SIGKILL, and prints what each step computed.

Usage: python resume_driver.py BASE ROWS FOLDER, scenarios as JSON on standard input. One process
imports once; each run is a fork of it, so a kill costs milliseconds, not an import.
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
from peft_lightning.checkpoint import Checkpoints
from tiny_run import fit


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
            os.kill(os.getpid(), signal.SIGKILL)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        self.saves += 1
        if self.saves == self.kill_in_save:
            original = os.fsync

            def fsync(descriptor: int) -> None:  # files are written, the folder not yet renamed
                original(descriptor)
                os.kill(os.getpid(), signal.SIGKILL)

            os.fsync = fsync


def run(base: Path, rows: Path, folder: Path, scenario: dict[str, Any]) -> None:
    kill = scenario.get("kill") or {}
    adapter = (
        PromptTuning(num_virtual_tokens=3)
        if scenario.get("prompt")
        else LoRA(r=2, lora_dropout=scenario.get("dropout", 0.1))
    )
    trace = Trace(folder / "trace.jsonl", kill.get("batch"), kill.get("save"))
    trainer = fit(
        base,
        rows,
        folder / "run",
        adapter=adapter,
        callbacks=[trace, Checkpoints(every_n_steps=scenario.get("every", 1))],
        ckpt_path=scenario.get("ckpt_path"),
        data=scenario.get("data"),
        module=scenario.get("module"),
        **scenario.get("trainer", {}),
    )
    tensors = trainer.lightning_module.state_dict()
    bits = {name: tensor.view(torch.int32).tolist() for name, tensor in tensors.items()}
    (folder / "final.json").write_text(json.dumps(bits))


if __name__ == "__main__":
    base, rows, folder = map(Path, sys.argv[1:])
    for scenario in json.load(sys.stdin):
        target = folder / scenario["name"]
        target.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            with (target / "log.txt").open("a") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            try:
                run(base, rows, target, scenario)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"name": scenario["name"], "status": os.waitstatus_to_exitcode(status)}))
