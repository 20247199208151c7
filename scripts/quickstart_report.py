"""Compare a base model with its adapter on held-out rows: what it answers, how often it is right.

    python scripts/quickstart_report.py BASE_MODEL ADAPTER_FOLDER [ROWS.jsonl] [--fetched SECONDS]

A row's completion is a call, ``{"function": ..., "arguments": {...}}``. An answer is exact if it
is JSON for an equal call, and has the right function if it is JSON that names the same function.
The last table has the seconds of each phase: with --fetched, those of fetching the model and, from
the run's summary.json, of training; and those of answering.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

ROWS = Path(__file__).parent.parent / "examples" / "home_assistant" / "val.jsonl"
SHOWN = 8
BATCH = 128  # prompts at a time
MAX_NEW_TOKENS = 40  # the longest completion of the data has 35


def main(arguments: list[str]) -> int:
    """Answer all rows with and without the adapter and print both; return the exit status."""
    fetched = None
    if "--fetched" in arguments[:-1]:
        place = arguments.index("--fetched")
        fetched, arguments = float(arguments[place + 1]), arguments[:place] + arguments[place + 2 :]
    if len(arguments) not in (2, 3):
        print(__doc__, file=sys.stderr)
        return 2
    base_name, folder = arguments[:2]
    file = Path(arguments[2]) if len(arguments) == 3 else ROWS
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    print(f"\nanswering the {len(rows)} held-out rows of {file.name} ...", flush=True)
    started = time.perf_counter()
    before, after = answer(base_name, folder, [row["prompt"] for row in rows])
    calls = [json.loads(row["completion"]) for row in rows]
    for i in range(0, len(rows), max(1, len(rows) // SHOWN))[:SHOWN]:
        print(f"\n  {rows[i]['prompt']}")
        print(f"    base     {shortened(before[i])}")
        print(f"    adapted  {after[i]}{'' if parsed(after[i]) == calls[i] else '   (wrong)'}")
        if parsed(after[i]) != calls[i]:
            print(f"    right    {rows[i]['completion']}")
    print(f"\n{'':18}{'base':>8}{'adapted':>10}")
    for name, right in (("exact match", exact), ("right function", same_function)):
        rates = [rate(map(right, answers, calls)) for answers in (before, after)]
        print(f"{name:18}{rates[0]:>8.1%}{rates[1]:>10.1%}")
    phases = seconds_of_phases(Path(folder), fetched, time.perf_counter() - started)
    print(f"\n{'seconds':36}")
    for name, seconds in [*phases.items(), ("all", sum(phases.values()))]:
        print(f"  {name:28}{seconds:>6.0f}")
    return 0


def seconds_of_phases(adapter: Path, fetched: float | None, answering: float) -> dict[str, float]:
    """Return the seconds of each phase of the quick start, in their order.

    Args:
        adapter: A checkpoint in the folder of its run.
        fetched: Of fetching and converting the model; None if the training is not of today.
        answering: Of answering the rows, loading the model included.
    """
    if fetched is None:
        return {"answering": answering}
    summary = json.loads((adapter.resolve().parent.parent / "summary.json").read_text())
    return {"fetching and converting": fetched, **summary["seconds"], "answering": answering}


def answer(base_name: str, folder: str, prompts: list[str]) -> tuple[list[str], list[str]]:
    """Return the greedy answers without and with the adapter."""
    from peft_lightning.process.progress import Progress

    with Progress("importing torch and transformers"):
        from peft_lightning.adapters import load_adapter
        from peft_lightning.base_model import base_fingerprint, load_base_model, load_tokenizer
        from peft_lightning.inference.generate import generate_texts

    tokenizer = load_tokenizer(base_name)
    model: Any = load_base_model(base_name, dtype="auto")

    def answers(adapter: Any) -> list[str]:
        answered = [len(prompts) * (adapter is not None)]

        def count(done: list[int], found: list[list[int]]) -> None:
            answered[0] += len(done)
            progress.update(answered[0])

        options: dict[str, Any] = {
            "batch_size": BATCH,
            "on_answers": count,
            "on_token": lambda answers: progress.update(int(answered[0] + answers)),
        }
        return generate_texts(model, adapter, tokenizer, prompts, MAX_NEW_TOKENS, **options)

    with Progress("answering", 2 * len(prompts), "prompts") as progress:
        before = answers(None)
        adapter = load_adapter(model, folder, base_fingerprint=base_fingerprint(model))
        return before, answers(adapter)


def parsed(text: str) -> Any:
    """Return the JSON value of ``text``; None if it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def exact(text: str, call: dict[str, Any]) -> bool:
    """Whether ``text`` is JSON for ``call``, in whatever order and spacing."""
    return bool(parsed(text) == call)


def same_function(text: str, call: dict[str, Any]) -> bool:
    """Whether ``text`` is JSON that names the function of ``call``."""
    found = parsed(text)
    return isinstance(found, dict) and found.get("function") == call["function"]


def rate(hits: Any) -> float:
    """Return the share of true values."""
    found = list(hits)
    return sum(found) / max(1, len(found))


def shortened(text: str, width: int = 88) -> str:
    """Return the start of ``text`` in one line."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
