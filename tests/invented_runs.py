"""Invented runs for the tests of comparisons: curves, losses and answers without any training."""

from pathlib import Path

import numpy as np

from peft_lightning.data import PromptFormat
from peft_lightning.experiments.compare.compared_set import SetToCompare
from peft_lightning.experiments.compare.evaluation_tasks import Evaluated
from peft_lightning.experiments.compare.groups import differences, groups_of, short_names
from peft_lightning.experiments.compare.questions import Questions
from peft_lightning.experiments.compare.row_losses import RowLosses
from peft_lightning.experiments.compare.runs import Run
from peft_lightning.experiments.compare.validation_rows import ValidationRows
from peft_lightning.reports.comparison import Comparison, RunResult
from peft_lightning.reports.run_record import RunRecord
from tiny_run import byte_tokenizer

CITIES = ["Berlin", "Paris", "Rome", "Oslo", "Madrid", "Vienna"]


def invented_run(name, options, seed=0, loss=1.0, facts=None, status="finished", steps=40):
    """Return a run with a curve that falls to ``loss``."""
    history = []
    for step in range(1, steps + 1):
        level = loss + 2.0 * np.exp(-step / 8)
        at = {"step": step, "epoch": step / 20, "tokens": step * 800, "seconds": step * 1.5}
        history.append({"kind": "train", **at, "metrics": {"train/loss": level * 0.95}})
        if step % 10 == 0:
            history.append({"kind": "val", **at, "metrics": {"val/loss": level}})
    summary = {"status": status, "steps": steps, "seed": seed, "best_val_loss": loss}
    summary |= {"precision": "32-true", **(facts or {})}
    record = RunRecord(Path("/runs", name), name, {}, summary, history, [], status)
    trainer = {"max_steps": steps, "default_root_dir": f"/runs/{name}"}
    model = {"base_model": "models/tiny-base", **options}
    whole = {"seed_everything": seed, "model": model, "data": {"train": "a"}, "trainer": trainer}
    return Run(name, record, Path("/runs", name, "checkpoints/best.ckpt"), whole)


def lora(r):
    return {"adapter": {"class_path": "peft_lightning.LoRA", "init_args": {"r": r}}}


def invented_comparison(
    levels, seeds=(0, 1, 2), spread=0.01, rows=120, questions=12, left=(), notes=()
):
    """Return a comparison of LoRA ranks with given true losses.

    Args:
        levels: The true loss by rank.
        seeds: Of each rank.
        spread: The standard deviation between seeds.
        rows: Number of rows.
        questions: Number of prompts.
        left: Runs that were not evaluated.
        notes: Notes.
    """
    draw = np.random.default_rng(1)
    tokens = draw.integers(8, 40, rows).astype(float)
    hardness = draw.gamma(2, 0.15, rows) - 0.3
    runs, found = [], {None: _evaluated(draw, 3.2, hardness, tokens, questions, 0.0)}
    for r, level in levels.items():
        facts = {"trainable_parameters": r * 9_000, "peak_memory_bytes": 2**30 + r * 2**22}
        facts |= {"tokens_per_second": 3000 - 20 * r, "train_seconds": 60.0 + r}
        for seed in seeds:
            name = f"r={r}/seed={seed}"
            own = level + draw.normal(0, spread)
            found[name] = _evaluated(draw, own, hardness, tokens, questions, 1.6 - level)
            loss = found[name].losses.mean
            runs.append(invented_run(name, lora(r), seed, loss, facts))
    sequence = {"input_ids": np.arange(3), "labels": np.arange(3), "loss_weights": np.ones(3)}
    data = ValidationRows(
        *("val.jsonl", [sequence] * rows, np.arange(rows), [None] * rows, [""] * rows),
        *(byte_tokenizer(), PromptFormat()),
    )
    texts = [f"Which city is number {i} <of> the list?\nassistant" for i in range(questions)]
    asked = Questions(texts, [_right(i) for i in range(questions)], name="val.jsonl")
    to_compare = SetToCompare(groups_of(runs), found, data, asked, ["exact_match"], "32-true")
    differ = differences(runs)
    short = short_names(differ)
    return Comparison(
        f"Comparison of {len(runs)} runs",
        [to_compare.compared()],
        [RunResult(run.name, run.record, run.status, run.seed) for run in left],
        {short[name]: values for name, values in differ.items()},
        list(notes),
    )


def _right(i):
    return f'The city is {CITIES[i % len(CITIES)]}, and {{"number": {i}}}.'


def _evaluated(draw, level, hardness, tokens, questions, skill):
    losses = (level + hardness + draw.normal(0, 0.03, len(tokens))) * tokens
    correct = np.minimum(tokens, np.round(tokens * np.clip(1.2 - level / 2, 0, 1)))
    answers = tuple(
        _right(i) if draw.uniform() < skill else f"The city is {draw.choice(CITIES)}."
        for i in range(questions)
    )
    return Evaluated(RowLosses(losses, tokens, correct), answers)
