"""LogGenerations: the model's answers to sample prompts, logged at each validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class LogGenerations(Callback):
    """Logs the greedy answers to the module's ``sample_prompts`` after each validation.

    They are printed, shown by TensorBoard, and added to ``samples.jsonl`` in the run's folder.
    """

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking or not pl_module.sample_prompts or trainer.state.fn != "fit":
            return
        answers = pl_module.generate(pl_module.sample_prompts, pl_module.sample_max_new_tokens)
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        lines = []
        for prompt, answer in zip(pl_module.sample_prompts, answers, strict=True):
            row = {"step": step, "prompt": prompt, "prediction": answer}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
            trainer.print(f"step {step}  {prompt!r} -> {answer!r}")
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "samples.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(lines)
        writers: list[Any] = [logger.experiment for logger in trainer.loggers]  # type: ignore[attr-defined]
        for writer in writers:
            if hasattr(writer, "add_text"):
                pairs = zip(pl_module.sample_prompts, answers, strict=True)
                text = "\n\n".join(f"**{prompt}**\n\n{answer}" for prompt, answer in pairs)
                writer.add_text("samples", text, step)
