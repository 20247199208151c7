"""What a busy machine costs: a step beside other processes, by how long waiting threads spin.

    python scripts/benchmarks/busy.py [--spins 0 2000 300000 ...] [--busy 1]

Each setting of ``GOMP_SPINCOUNT`` (300,000 is OpenMP's own) trains in fresh processes, alone and
beside busy ones, in turn. The last line is a JSON object: of each setting the speed alone and the
speed beside them, as shares of the fastest alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from throughput import MODEL

HERE = Path(__file__).parent
WARM_UP = 2  # steps of a process that do not count


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL, help="a model's folder or hub id")
    parser.add_argument("--spins", nargs="+", default=["0", "2000", "300000"])
    parser.add_argument("--busy", type=int, default=1, help="processes that compute all the time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="of a process, warm-up included")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="fp32")
    options = parser.parse_args()
    options.model = str(Path(options.model).expanduser())
    rates: dict[tuple[str, int], list[float]] = {}
    for number in range(options.rounds):
        for spin in options.spins:
            for busy in (0, options.busy):
                rates.setdefault((spin, busy), []).extend(measure(spin, busy, number, options))
    medians = {key: statistics.median(found) for key, found in rates.items()}
    fastest = max(rate for (_, busy), rate in medians.items() if not busy)
    print(f"| spins | tokens/s alone | beside {options.busy} busy | share alone | share beside |")
    print("|---|---:|---:|---:|---:|")
    shares = {}
    for spin in options.spins:
        alone, beside = medians[spin, 0], medians[spin, options.busy]
        shares[spin] = round(alone / fastest, 3), round(beside / fastest, 3)
        print(f"| {spin} | {alone:,.0f} | {beside:,.0f} | {shares[spin][0]} | {shares[spin][1]} |")
    print(json.dumps(shares))


def measure(spin: str, busy: int, seed: int, options: Any) -> list[float]:
    """Return useful tokens per second of the steps of one process.

    Args:
        spin: ``GOMP_SPINCOUNT``.
        busy: How many other processes compute.
        seed: Of the rows.
        options: The rest.
    """
    environment = {**os.environ, "GOMP_SPINCOUNT": spin}
    command = [sys.executable, str(HERE / "variants.py"), "ours", "--model", options.model]
    command += ["--seed", str(seed), "--steps", str(options.steps)]
    command += ["--batch-size", str(options.batch_size), "--precision", options.precision]
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    finally:
        for other in others:
            other.kill()
            other.wait()
    result = json.loads(done.stdout.splitlines()[-1])
    each = list(zip(result["tokens"], result["wall"], strict=True))[WARM_UP:]
    return [tokens / seconds for tokens, seconds in each]


if __name__ == "__main__":
    main()
