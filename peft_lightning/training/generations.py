"""LogGenerations: answers to sample prompts, of the base before training and at each validation."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from peft_lightning.inference.limits import UnknownTokenError
from peft_lightning.training.base_alone import base_alone, why_not_alone
from peft_lightning.training.prediction import require_room
from peft_lightning.training.run_lines import RunLines

SAMPLES_FILE = "samples.jsonl"


class LogGenerations(Callback):
    """Logs the greedy answers to the module's ``sample_prompts`` after each validation.

    Before training, at step 0, they are those of the base alone, to compare with. They are printed,
    shown by TensorBoard, and added to ``samples.jsonl`` in the run's folder: of one run, in which a
    resumed one replaces what it answers again.
    """

    def __init__(self) -> None:
        self._file = RunLines(SAMPLES_FILE)
        self._answered = -1  # the last step of which there are answers

    def state_dict(self) -> dict[str, Any]:
        return {"answered": self._answered}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._answered = state_dict["answered"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._file.find(trainer)
        if pl_module.sample_prompts:
            require_room(pl_module, pl_module.sample_prompts, pl_module.sample_max_new_tokens)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._file.begin(lambda line: line["step"] <= self._answered)
        if trainer.global_step > 0 or not pl_module.sample_prompts:
            return
        if reason := why_not_alone(trainer, pl_module):
            rank_zero_info(f"no answers of the base alone to sample_prompts: {reason}")
            return
        try:
            with base_alone(pl_module):
                self._answer(trainer, pl_module)
        except UnknownTokenError as error:  # one that the adapter adds
            rank_zero_info(f"no answers of the base alone to sample_prompts: {error}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking or not pl_module.sample_prompts or trainer.state.fn != "fit":
            return
        self._answer(trainer, pl_module)

    def _answer(self, trainer: L.Trainer, module: Any) -> None:
        prompts, step = module.sample_prompts, trainer.global_step
        answers = module.generate(prompts, module.sample_max_new_tokens)
        self._answered = step
        if not trainer.is_global_zero:
            return
        whose = " (base)" if step == 0 else ""
        for prompt, answer in zip(prompts, answers, strict=True):
            self._file.append({"step": step, "prompt": prompt, "prediction": answer})
            trainer.print(f"step {step}{whose}  {prompt!r} -> {answer!r}")
        writers: list[Any] = [logger.experiment for logger in trainer.loggers]  # type: ignore[attr-defined]
        for writer in writers:
            if hasattr(writer, "add_text"):
                pairs = zip(prompts, answers, strict=True)
                text = "\n\n".join(f"**{prompt}**\n\n{answer}" for prompt, answer in pairs)
                writer.add_text("samples", text, step)
