"""What a run trains and how it is computed, printed at its start and kept in summary.json."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from peft_lightning import __version__
from peft_lightning.base_model.quantization import count_numbers
from peft_lightning.files import atomic_text
from peft_lightning.process.progress import STARTING, seconds_since_start, seconds_spent
from peft_lightning.training.compute_report import as_table, compute_report, unexpected
from peft_lightning.training.throughput import Throughput, peak_memory
from peft_lightning.training.trained_table import trained_table

PACKAGES = ("torch", "lightning", "transformers")


@dataclass
class RunSummary:
    """What ``summary.json`` holds of a run; sizes in parameters, bytes, seconds and nats."""

    method: str
    base_model: str
    status: str
    steps: int
    epochs: float
    adapter: dict[str, Any]
    trainable_parameters: int
    total_parameters: int
    tokens: int
    tokens_per_second: float
    train_seconds: float
    peak_memory_bytes: int
    best_val_loss: float | None
    last: dict[str, float]
    seed: int | None
    precision: str
    dtype: str
    threads: int
    world_size: int
    data_hash: str | None
    base_fingerprint: dict[str, Any] | None
    seconds: dict[str, float] = field(default_factory=dict)  # of this start, by phase
    paths: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


class Summary(Callback):
    """Prints what is trained and how it is computed, and writes ``summary.json``.

    The file is beside the checkpoints.

    Args:
        verbose: Whether to print how every part is computed; else only what is not computed in the
            fastest way, and what the user may choose.
    """

    def __init__(self, verbose: bool = False) -> None:
        self.verbose = verbose
        self._paths: dict[str, str] = {}
        self._start_up = self._validating = 0.0
        self._began = self._validation_began = 0.0
        self.first_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        STARTING.__exit__()
        self._start_up = seconds_since_start()
        self._began, self.first_step = time.perf_counter(), trainer.global_step
        self._validating = 0.0  # the sanity check belongs to the start

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        STARTING.__exit__()
        self._validation_began = time.perf_counter()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        STARTING.__exit__()

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        STARTING.__exit__()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validating += time.perf_counter() - self._validation_began

    def seconds(self) -> dict[str, float]:
        """Return the seconds that each phase of this start of the run took."""
        tokenizing = seconds_spent("tokenizing")
        training = time.perf_counter() - self._began - self._validating
        found = {
            "start": max(0.0, self._start_up - tokenizing),
            "tokenizing": tokenizing,
            "training": training,
            "validation": self._validating,
        }
        return {name: round(seconds, 2) for name, seconds in found.items()}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rank_zero_print(trained_table(pl_module.model, self.verbose))  # type: ignore[arg-type]
        self._paths = compute_report(pl_module)  # in every process: sharded layers answer together
        rank_zero_print(as_table(self._paths if self.verbose else unexpected(self._paths)))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer, pl_module, "finished")

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        if trainer.state.fn == "fit" and trainer.global_step > 0:
            with suppress(OSError):  # of a full disk, which may be the exception: that is reported
                self._write(trainer, pl_module, f"stopped: {type(exception).__name__}")

    @rank_zero_only
    def _write(self, trainer: Any, module: Any, status: str) -> None:
        if trainer.fast_dev_run:
            return
        throughput = next(c for c in trainer.callbacks if isinstance(c, Throughput))
        best = getattr(trainer.checkpoint_callback, "best_model_score", None)
        summary = RunSummary(
            method=module.adapter.peft_type,
            base_model=module.base_model_name,
            status=status,
            steps=trainer.global_step,
            epochs=trainer.current_epoch,
            adapter=module.adapter.options(),
            trainable_parameters=sum(p.numel() for p in module.parameters() if p.requires_grad),
            total_parameters=sum(count_numbers(p) for p in module.parameters()),
            tokens=throughput.tokens,
            tokens_per_second=round(throughput.tokens / max(1e-9, throughput.seconds), 1),
            train_seconds=round(throughput.seconds, 2),
            peak_memory_bytes=peak_memory(module.device),
            best_val_loss=None if best is None else float(best),
            last={k: float(v) for k, v in sorted(trainer.callback_metrics.items())},
            seed=torch.initial_seed() if torch.initial_seed() < 2**32 else None,
            precision=str(trainer.precision),
            dtype=str(module.model.dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
            world_size=trainer.world_size,
            data_hash=getattr(trainer.datamodule, "data_hash", None),
            base_fingerprint=module.fingerprint,
            seconds=self.seconds(),
            paths=self._paths | module.outputs.ways(),
            versions={"peft_lightning": __version__} | {name: version(name) for name in PACKAGES},
        )
        path = Path(trainer.default_root_dir) / "summary.json"
        atomic_text(path, json.dumps(asdict(summary), indent=2) + "\n")


@rank_zero_only
def rank_zero_print(text: str) -> None:
    """Print on the first process only, and at once."""
    print(text, flush=True)
