"""Runs fits one after the other in each of several processes, and writes down what each saw.

``in_processes`` starts ``python processes.py FOLDER COUNT`` once for each process, with the runs in
FOLDER/runs.json.
"""

import importlib
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from warm_python import start

HERE = Path(__file__).parents[1]


def in_processes(count: int, folder: Path, runs: dict[str, dict[str, Any]]) -> None:
    """Make ``runs``, by name, in ``count`` processes that train together.

    What ``outcome`` returns is in FOLDER/NAME/rank<r>.json, the final adapter in
    FOLDER/NAME/weights.safetensors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "runs.json").write_text(json.dumps(runs))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(count):
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{HERE}:{HERE}/drivers:{HERE.parent}",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "LOCAL_RANK": str(rank),
        }
        with (folder / f"log{rank}.txt").open("w") as log:
            processes.append(start([__file__, folder, count], env=env, stdout=log, stderr=log))
    try:
        for rank, process in enumerate(processes):
            assert process.wait(timeout=500) == 0, (folder / f"log{rank}.txt").read_text()[-3000:]
    finally:
        for process in processes:
            process.kill()


def outcome(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    """Return what a rank wrote down of a run."""
    return json.loads((folder / name / f"rank{rank}.json").read_text())


def resumed_and_whole(folder: Path, base: Path, rows: Path, adapter: list[Any]) -> list[Path]:
    """Return the final weights of a run that stopped and went on, and of one that did neither."""
    options = {"base": str(base), "rows": str(rows), "adapter": adapter}
    options |= {"module": {"sgd": False}, "trainer": {"precision": "32-true"}, "every": 1}
    run(folder / "whole", options, 1)
    run(folder / "stopped", {**options, "stop_after": 3}, 1)
    last = str(folder / "stopped/run/checkpoints/last.ckpt")
    run(folder / "again", {**options, "ckpt_path": last}, 1)
    assert len(outcome(folder, "again")["rows"]) < len(outcome(folder, "whole")["rows"])
    return [folder / name / "weights.safetensors" for name in ("again", "whole")]


def named(kind: str) -> Any:
    """Return a class of ours, or one of a dotted path."""
    module, _, name = kind.rpartition(".")
    return getattr(importlib.import_module(module or "peft_lightning"), name)


def rows_of(rank: int) -> list[dict[str, str]]:
    """Return rows that are others in each process, as an unseeded stream gives them."""
    return [{"prompt": "process", "completion": str(rank)}]


def run(folder: Path, options: dict[str, Any], world_size: int) -> None:
    """Make one run in this process; with others, each process calls this."""
    folder.mkdir(parents=True, exist_ok=True)
    import torch
    from lightning.pytorch.callbacks import Callback
    from safetensors.torch import save_file

    from exactness import sgd
    from peft_lightning.training.checkpoint import AdapterCheckpoint
    from peft_lightning.training.checkpoint_io import AdapterCheckpointIO
    from peft_lightning.training.schedules import Constant
    from tiny_run import fit

    class Killed(Exception):  # noqa: N818
        """Ends a run as a crash would: nothing more is saved."""

    class Watch(Callback):
        """Keeps the rows of every step, the losses, and the random state at the first step."""

        def __init__(self) -> None:
            self.seen: dict[str, Any] = {"rows": [], "losses": [], "noise": None}

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, i: int) -> None:
            if self.seen["noise"] is None:
                self.seen["noise"] = torch.get_rng_state().sum().item()

        def on_train_batch_end(self, trainer: Any, module: Any, out: Any, batch: Any, i: int):
            if trainer.global_step > options.get("stop_after", trainer.global_step):
                raise Killed
            if "input_ids" not in batch:  # a nest of batches
                return
            ids, mask = batch["input_ids"], batch.get("attention_mask")
            flat = "seq_lens" in batch
            parts = (
                ids[0].split(batch["seq_lens"])
                if flat
                else map(torch.masked_select, ids, mask.bool())
            )
            rows = [row.tolist() for row in parts]
            self.seen["rows"].append([trainer.current_epoch, trainer.global_step, rows])

        def on_validation_end(self, trainer: Any, module: Any) -> None:
            self.seen["losses"].append(trainer.callback_metrics["val/loss"].item())

    saves: list[str] = []
    original = AdapterCheckpointIO.save_checkpoint

    def save_checkpoint(self: Any, checkpoint: Any, path: Any, **options: Any) -> None:
        saves.append(Path(path).name)
        original(self, checkpoint, path, **options)

    AdapterCheckpointIO.save_checkpoint = save_checkpoint  # type: ignore[method-assign]
    watch = Watch()
    kind, fields = options.get("adapter", ["LoRA", {"r": 2, "init_lora_weights": False}])
    module = dict(options.get("module", {}))
    if module.pop("sgd", True):
        module |= {"optimizer": sgd, "lr_schedule": Constant()}
    trainer_options = {"precision": "64-true", "max_epochs": 1, **options.get("trainer", {})}
    if world_size > 1:
        trainer_options = {"strategy": "ddp", **trainer_options, "devices": world_size}
    else:
        trainer_options.pop("strategy", None)
    found: dict[str, Any] = {"saves": saves, "error": None}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    rank = int(os.environ["LOCAL_RANK"]) if world_size > 1 else 0
    try:
        trainer = fit(
            Path(options["base"] if isinstance(options["base"], str) else options["base"][rank]),
            options["rows"],
            folder / "run",
            adapter=named(kind)(**fields),
            callbacks=[
                watch,
                AdapterCheckpoint(every_n_steps=options.get("every", 1000)),
                *(named(kind)() for kind in options.get("callbacks", [])),
            ],
            ckpt_path=options.get("ckpt_path"),
            data={"val_fraction": 0, "cache_dir": str(folder.parent / "cache")}
            | options.get("data", {})
            | ({"val": rows_of(rank)} if options.get("rows_of_rank") else {}),
            module=module,
            module_class=named(options.get("module_class", "CausalLMModule")),
            data_class=named(options.get("data_class", "SFTDataModule")),
            **trainer_options,
        )
        weights = trainer.lightning_module.state_dict()
        if watch.seen["losses"]:
            again = trainer.validate(ckpt_path="best", datamodule=trainer.datamodule, verbose=False)
            found |= {"validated": again[0]["val/loss"], "metrics": again[0]}
        if rank == 0:
            save_file({k: v.clone() for k, v in weights.items()}, folder / "weights.safetensors")
    except Killed:
        pass
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"
    finally:
        AdapterCheckpointIO.save_checkpoint = original  # type: ignore[method-assign]
        for number, handler in handlers.items():
            signal.signal(number, handler)
    (folder / f"rank{rank}.json").write_text(json.dumps(found | watch.seen))


if __name__ == "__main__":
    root = Path(sys.argv[1])
    given = json.loads((root / "runs.json").read_text())
    for name, options in given.items():
        run(root / name, options, world_size=int(sys.argv[2]))
    import torch

    torch.distributed.destroy_process_group()  # its threads may abort the interpreter's end
