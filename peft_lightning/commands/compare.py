"""``python -m peft_lightning compare``: which runs differ beyond noise, as a page and as tables."""

from __future__ import annotations

from pathlib import Path

from peft_lightning.messages import UserError

PAGE = "compare.html"


def compare(
    *run: str,
    out: str | None = None,
    val: str | None = None,
    rows: int | None = None,
    prompts: str | None = None,
    answers: int = 50,
    metrics: list[str] | None = None,
    forgetting: bool = False,
    max_new_tokens: int = 128,
    batch_size: int = 32,
    precision: str = "auto",
    device: str = "auto",
    json: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Compare runs with each other and with their untouched base, and say what is beyond noise.

    The base and the best checkpoint of each run are evaluated row by row on the validation rows of
    the runs, and answer the same prompts. What was evaluated is kept in the runs' folders. Runs
    that differ only in their seed are one group; the spread between seeds is the noise floor.

    Args:
        run: Folders of runs, or with runs below them, such as that of a sweep.
        out: Folder for compare.html, compare.md, compare.csv, compare.json and answers.jsonl;
            without, the folder that was given, or the one that all given are in.
        val: Rows to evaluate on in place of the runs' own validation rows.
        rows: Largest number of rows that are evaluated.
        prompts: File of prompts that all answer, .txt with one a line or rows as for training;
            without, the first validation rows.
        answers: Number of prompts that are answered; 0 for none.
        metrics: Scores of the answers: exact_match, json_match, contains, f1, rouge1, rouge2,
            rougeL, bleu, chrf; may be given several times.
        forgetting: Compare the loss on general text too, which an adapter should not raise.
        max_new_tokens: Largest number of tokens of an answer.
        batch_size: Number of prompts in a batch.
        precision: In which all are evaluated, as the Trainer names it; auto for that of the runs
            if it suits this machine.
        device: auto (the GPU if there is one), cpu, cuda, cuda:1 ...
        json: Print everything as one JSON object.
        trust_remote_code: Whether code that comes with the base model may run.
    """
    if not run:
        raise UserError("give folders of runs, or one with runs below it, such as runs/")
    import json as json_module

    from peft_lightning.experiments.compare.compare import compare_runs
    from peft_lightning.experiments.compare.evaluated_model import EvaluationOptions
    from peft_lightning.files import Kind, marked_file, require_output
    from peft_lightning.reports.comparison_files import write_comparison
    from peft_lightning.reports.comparison_text import as_json

    how = (precision, device, max_new_tokens, batch_size, trust_remote_code, forgetting)
    options = EvaluationOptions(*how)
    folder = Path(out).expanduser() if out else _common(run)
    page = Kind("comparison", marked_file("<!-- compare -->"))
    require_output(folder / PAGE, page, overwrite=True)
    found = compare_runs(
        run,
        val=val,
        rows=rows,
        prompts=prompts,
        answers=answers,
        metrics=metrics or [],
        options=options,
    )
    write_comparison(found, folder)
    if json:
        print(json_module.dumps(as_json(found), indent=2, default=str))
        return
    for note in found.notes:
        print(note)
    for i, one in enumerate(found.sets, 1):
        if len(found.sets) > 1:
            print(f"set {i}: {one.base_model}, {one.data}")
        print("\n".join(one.conclusions))
    for left in found.left:
        print(f"not evaluated: {left.name}: {left.status}")
    print(f"{folder / PAGE}")


def _common(folders: tuple[str, ...]) -> Path:
    """Return the folder that was given, or the one that all given ones are in."""
    import os

    paths = [Path(folder).expanduser() for folder in folders]
    return paths[0] if len(paths) == 1 else Path(os.path.commonpath([p.parent for p in paths]))
