"""How near ``plan`` comes: memory and time that it predicts, and those of the run itself.

Usage: python scripts/benchmarks/plan_accuracy.py [NAME ...] [--processor-time] [--out FILE.md]

Each configuration is planned and then trained, in a process of its own each, one after the other.
Time is that of the whole process, from its start to its exit; memory is the highest resident memory
of the process, from summary.json.

On a busy machine the two are not equally busy: with --processor-time both compute with one thread,
and all times, those that plan takes included, are of the processor and not of the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOME = ["--data.train", "examples/home_assistant/train.jsonl"]
HOME += ["--data.val", "examples/home_assistant/val.jsonl"]
LORA = ["--model.adapter", "LoRA", "--model.adapter.target_modules"]
PROMPT = ["--model.adapter", "PromptTuning", "--model.adapter.num_virtual_tokens", "16"]
ALL, ROWS = [*LORA, "all-linear", *HOME, "--model.adapter.r"], "--data.batch_size"
RECOMPUTED = ["--model.activation_checkpointing", "true"]
TEXT = ["--data.train", "{text}", "--data.format", "text", "--data.truncation", "truncate"]
CONFIGS: dict[str, tuple[str, list[str]]] = {
    "lora": ("LoRA r 16, 8 rows a batch", [*ALL, "16", ROWS, "8"]),
    "accumulated": (
        "LoRA r 4, 2 rows a batch, 4 batches a step",
        [*ALL, "4", ROWS, "2", "--trainer.accumulate_grad_batches", "4"],
    ),
    "checkpointing": (
        "LoRA r 16, 16 rows a batch, activation checkpointing",
        [*ALL, "16", ROWS, "16", *RECOMPUTED],
    ),
    "full": ("Full, 8 rows a batch", ["--model.adapter", "Full", *HOME, ROWS, "8"]),
    "prompt": ("PromptTuning, 16 virtual tokens, 8 rows a batch", [*PROMPT, *HOME, ROWS, "8"]),
    "text": (
        "LoRA r 8 on attention, plain text of up to 512 tokens, 1,024 tokens a batch",
        [*LORA, "attention", *TEXT, "--data.max_length", "512", "--data.tokens_per_batch", "1024"],
    ),
}
STEPS = "10"
ON_PROCESSOR_TIME = """
import runpy, sys, time
time.perf_counter = time.monotonic = time.process_time
runpy.run_module("peft_lightning", run_name="__main__", alter_sys=True)
"""


def write_text(file: Path) -> None:
    """Write the sections of the documentation as rows of uneven lengths."""
    with file.open("w", encoding="utf-8") as out:
        for page in sorted((ROOT / "docs").glob("*.md")):
            for section in page.read_text(encoding="utf-8").split("\n## "):
                out.write(json.dumps({"text": section}) + "\n")


def run(command: str, options: list[str], by_processor: bool) -> tuple[str, float]:
    """Run a command of the package; return what it prints and its seconds."""
    args = [sys.executable, "-m", "peft_lightning", command, *options]
    if by_processor:
        args[1:3] = ["-c", ON_PROCESSOR_TIME]
    environment = {**os.environ, **({"OMP_NUM_THREADS": "1"} if by_processor else {})}
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, env=environment)
    spent, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{command} failed: {done.stderr[-2000:]}")
    if by_processor:
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, spent


def compare(options: list[str], folder: Path, by_processor: bool) -> dict[str, float]:
    """Plan a run and make it; return what was predicted and what it took."""
    steps = ["--trainer.max_steps", STEPS, "--trainer.default_root_dir", str(folder)]
    before = os.getloadavg()[0]
    text, planning = run("plan", [*options, *steps, "--json"], by_processor)
    planned = json.loads(text)
    _, seconds = run("fit", [*options, *steps], by_processor)
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "planning": planning,
        "memory": planned["peak_bytes"] / 2**20,
        "memory_of_run": summary["peak_memory_bytes"] / 2**20,
        "time": planned["seconds"]["total"],
        "time_of_run": seconds,
        "steps": planned["seconds"]["training"],
        "steps_of_run": summary["seconds"]["training"],
        "load": before,
    }


def off(predicted: float, real: float) -> str:
    """Return by how much a prediction differs, in percent of what is real."""
    return f"{predicted / real - 1:+.1%}"


def row(name: str, found: dict[str, float]) -> str:
    """Return a row of the table."""
    cells = [CONFIGS[name][0]]
    cells += [f"{found['memory']:,.0f}", f"{found['memory_of_run']:,.0f}"]
    cells.append(off(found["memory"], found["memory_of_run"]))
    for kind in ("time", "steps"):
        cells += [f"{found[kind]:.1f}", f"{found[f'{kind}_of_run']:.1f}"]
        cells.append(off(found[kind], found[f"{kind}_of_run"]))
    cells += [f"{found['planning']:.1f}", f"{found['load']:.1f}"]
    return f"| {' | '.join(cells)} |"


HEADER = """\
| run | memory, MiB | of the run | off | time, s | of the run | off | steps, s | of the run | off \
| plan took, s | load |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"""


def main() -> None:
    """Compare the named configurations, or all, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(CONFIGS), help=", ".join(CONFIGS))
    parser.add_argument("--out", type=Path, help="where to write the table")
    parser.add_argument("--processor-time", action="store_true", help="for a busy machine")
    given = parser.parse_args()
    lines = [HEADER]
    with tempfile.TemporaryDirectory() as temporary:
        text = Path(temporary) / "docs.jsonl"
        write_text(text)
        for name in given.names:
            options = [option.format(text=text) for option in CONFIGS[name][1]]
            lines.append(row(name, compare(options, Path(temporary) / name, given.processor_time)))
            print(lines[-1], flush=True)
            if given.out:
                given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
