"""Seconds that ``audit`` takes for so many rows of random words.

    python scripts/benchmarks/audit_rows.py [--rows 1000000]

The rows are prompts of 12 and completions of 15 words, 161 tokens each with the chat template of
the quick start's model, which has to be there.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = [f"w{i}" for i in range(5000)]


def main() -> None:
    """Write the rows, audit them and print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        with file.open("w", encoding="utf-8") as out:
            for _ in range(rows):
                prompt, completion = (" ".join(draw.choices(WORDS, k=k)) for k in (12, 15))
                out.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")
        started = time.perf_counter()
        command = [sys.executable, "-m", "peft_lightning", "audit", str(file), "--rows", "1"]
        status = subprocess.run(command, check=False).returncode
    print(f"{rows:,} rows, status {status}: {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
