"""Try every causal language model class of the installed transformers, and write docs/models.md.

Usage: python scripts/models_table.py RESULTS [MODEL_TYPE ...] [--seconds N] [--write]

Each class is tried as a tiny random model in a process of its own (tests/model_checks.py), and its
result is a line of the file RESULTS. A class that is there already is not tried again, so that an
interrupted run goes on; model types that are named are tried anew. With --write the page is
written from RESULTS, and nothing is tried.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import signal
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "models.md"
START = "<!-- written by scripts/models_table.py -->\n"


def main() -> None:
    """Try what is not tried yet, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("model_types", nargs="*")
    parser.add_argument("--seconds", type=int, default=120, help="of processor time for a class")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    if given.write:
        PAGE.write_text(page(read(given.results)), "utf-8")
        return
    import logging

    import torch
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    import model_checks  # noqa: F401  (here, once: each class is tried in a fork)

    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    done = read(given.results)
    wanted = given.model_types or [name for name in CLASSES if name not in done]
    for i, model_type in enumerate(wanted):
        result = tried(model_type, given.seconds)
        with given.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        print(f"{i + 1} of {len(wanted)} {model_type}: {outcome(result)}", flush=True)


def read(file: Path) -> dict[str, dict[str, Any]]:
    """Return the last result of each model type."""
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    return {result["model_type"]: result for result in map(json.loads, lines)}


def tried(model_type: str, seconds: int) -> dict[str, Any]:
    """Return the result of a class, from a process that may take ``seconds`` of processor time."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "result.json")
        if (child := os.fork()) == 0:
            from model_checks import check_model

            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))  # ends by SIGXCPU
            try:
                answer.write_text(json.dumps(check_model(model_type, Path(folder))), "utf-8")
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        if answer.exists():
            return json.loads(answer.read_text("utf-8"))
    ended = os.waitstatus_to_exitcode(status)
    slow = ended in (-signal.SIGXCPU, -signal.SIGKILL)
    why = f"no end within {seconds} s of processor time" if slow else f"ended with {ended}"
    return {"model_type": model_type, "cannot be made": why}


def outcome(result: dict[str, Any]) -> str:
    """Return what a class does here: right and how, or what is not right."""
    from model_checks import CHECKS, RIGHT

    if "cannot be made" in result:
        return f"cannot be made: {result['cannot be made']}"
    parts = {name: result[name] for name in CHECKS if result.get(name, RIGHT) != RIGHT}
    return "; ".join(f"{name}: {text}" for name, text in parts.items()) or (
        f"{RIGHT}, {result['way']}"
    )


def page(results: dict[str, dict[str, Any]]) -> str:
    """Return the page, with a table of each family and the counts over it."""
    from importlib.metadata import version

    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    from model_checks import CHECKS, RIGHT

    text, start, _ = PAGE.read_text("utf-8").partition(START)
    by_class: dict[str, dict[str, Any]] = {}
    for result in sorted(results.values(), key=lambda r: "cannot be made" in r):
        name = result.get("class") or CLASSES[result["model_type"]]
        by_class.setdefault(name, result)  # of types that share a class: one that could be made
    made = [r for r in by_class.values() if "cannot be made" not in r]
    right = [r for r in made if all(r.get(name) == RIGHT for name in CHECKS)]
    refused = [r for r in made if str(r["losses"]).startswith("refused")]
    found = {result["class"]: " ".join(str(result.get(name)) for name in CHECKS) for result in made}
    wrong = [name for name, text in found.items() if "WRONG" in text]
    own = [name for name, text in found.items() if "fails in transformers" in text]
    versions = ", ".join(f"{n} {version(n)}" for n in ("transformers", "torch", "peft"))
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, {versions}. {len(by_class)} classes: {len(right)} right in "
        f"every column, {len(made) - len(right) - len(refused) - len(wrong) - len(own)} but for "
        f"something that is refused, {len(own)} but for something that fails in transformers "
        f"itself, {len(wrong)} with something wrong, {len(refused)} refused with the reason, "
        f"{len(by_class) - len(made)} not made by rule.",
        "",
    ]
    for family in sorted({r["family"] for r in made}):
        rows = sorted((r for r in made if r["family"] == family), key=lambda r: r["class"])
        lines += [f"### {family} ({len(rows)})", "", *table(rows), ""]
    lines += ["### Not made", "", "| class | reason |", "|---|---|"]
    lines += [
        f"| {name} | {cell(r['cannot be made'])} |"
        for name, r in by_class.items()
        if "cannot be made" in r
    ]
    return text + start + "\n" + "\n".join(lines) + "\n"


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table of a family, with what is not right below it."""
    from model_checks import CHECKS, RIGHT

    lines = [
        f"| class | run as | {' | '.join(CHECKS.values())} |",
        "|---" * (len(CHECKS) + 2) + "|",
    ]
    notes = []
    for row in rows:
        cells = [row["class"], row["way"]]
        for name in CHECKS:
            found = row.get(name, "-")
            cells.append({RIGHT: "yes"}.get(found, found.partition(":")[0]))
            if found not in (RIGHT, "-"):
                notes.append(f"- {row['class']}, {CHECKS[name]}: {cell(found)}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines + (["", *notes] if notes else [])


def cell(text: str) -> str:
    """Return a text that a table takes, without folders of this machine."""
    text = re.sub(r"/tmp/\S+", "FOLDER", text)
    text = re.sub(r"Unrecognized .*\.(\w+)'> for.*", r"AutoModelForCausalLM takes no \1", text)
    return text.replace("|", "\\|")[:220]


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests")]
    main()
