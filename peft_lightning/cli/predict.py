"""``predict``: each row of ``data.predict`` with its answer, in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from peft_lightning.cli.predictions import KeptPredictions
from peft_lightning.cli.scored_predictions import ScoredPredictions
from peft_lightning.data.datamodule import SFTDataModule
from peft_lightning.files import ANSWERS, require_output
from peft_lightning.messages import UserError
from peft_lightning.module import CausalLMModule
from peft_lightning.training.summary import rank_zero_print

OUTPUT_HELP = "JSONL file to write; without, predictions.jsonl in the folder of the run."
ADAPTER_HELP = (
    "An adapter, FOLDER or NAME=FOLDER; may be given several times. A row's 'adapter' says which "
    "one answers it ('base' for none); without, each of them does."
)


def require_one_process_and_rows(trainer: L.Trainer, datamodule: Any, own_data: str | None) -> None:
    """Raise UserError if ``predict`` has several processes, or data that are no rows of ours.

    Args:
        trainer: The trainer.
        datamodule: The data module.
        own_data: Class path of the user's data module, if that is given.
    """
    if trainer.world_size > 1:
        raise UserError(
            f"predict runs in one process, got {trainer.world_size}; give --trainer.devices 1"
        )
    if not isinstance(datamodule, SFTDataModule):
        raise UserError(
            f"predict writes the rows of an SFTDataModule with their answers: {own_data} is none, "
            "so call trainer.predict in Python"
        )


def write_predictions(
    trainer: L.Trainer,
    module: CausalLMModule,
    datamodule: SFTDataModule,
    given: Any,
    options: dict[str, Any],
) -> None:
    """Answer the rows of ``data.predict``, and write them with answers and scores.

    Args:
        trainer: Runs the batches.
        module: Answers.
        datamodule: Has the rows.
        given: The command's configuration: ``output``, the file to write, None for
            predictions.jsonl in the run's folder, and ``overwrite``.
        options: Other arguments of ``trainer.predict``, the module among them.

    Raises:
        UserError: If the file is one of those that are read, or is there already.
    """
    path = Path(given.output or f"{trainer.default_root_dir}/predictions.jsonl").expanduser()
    rows = datamodule.paths["predict"]
    inputs = [row for row in (rows if isinstance(rows, list) else [rows]) if row]
    require_output(path, ANSWERS, inputs, given.overwrite)
    kept = KeptPredictions(module, datamodule, path)
    batches: Any = trainer.predict(datamodule=datamodule, **options)
    answers = sorted((a for batch in batches for a in batch), key=lambda a: a["index"])
    scored = ScoredPredictions(module, datamodule, answers)
    kept.finish(answers, scored.of_rows)
    rank_zero_info(f"{len(answers)} answers are in {path}")
    if cut := module.cut_answers:
        most = module.predict_max_new_tokens
        rank_zero_info(f"{cut} answers were cut at model.predict_max_new_tokens {most}")
    if table := scored.table():
        rank_zero_print(table)
