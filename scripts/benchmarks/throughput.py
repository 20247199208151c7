"""Speed and memory of one optimizer step against TRL, HF PEFT and litgpt, in one interleaved run.

    python scripts/benchmarks/throughput.py [--quick] [--only NAME ...] [--write FILE]

Each round runs every variant in a fresh process on rows of its own, the same for all variants; a
variant's first two steps are warm-up. The last line is a JSON object: ``ratio`` (useful tokens/s
of ours over theirs, by medians over all steps), ``memory_ratio`` (peak memory of theirs over ours),
and the errors of gradients.py.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import gradients
import workload

HERE = Path(__file__).parent
MODEL = "~/.cache/peft_lightning/models/SmolLM2-135M-Instruct"
BASELINES = ("trl_default", "trl_grouped", "peft_padded", "peft_packed", "litgpt")
NEEDS = {"trl_default": "trl", "trl_grouped": "trl", "litgpt": "litgpt"}
NEEDS |= dict.fromkeys(["peft_padded", "peft_packed", "peft_prompt"], "peft")
NEEDS["peft_packed_flash"] = "flash_attn"
WARM_UP = 2  # steps: the allocator touches fresh memory in them
PROMPT = ("ours_prompt", "peft_prompt")
QUICK = ("ours", "ours_recomputed", *BASELINES)


def main() -> None:
    """Measure, print the table, and the JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL, help="a model's folder or hub id")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="of a process, warm-up included")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", nargs="+", help="variants, besides ours")
    parser.add_argument("--quick", action="store_true", help="one round, one step, half batches")
    parser.add_argument("--write", type=Path, help="Markdown file for the table")
    options = parser.parse_args()
    options.model = str(Path(options.model).expanduser())
    options.warm_up, options.longest = WARM_UP, workload.LENGTHS[1]
    if options.quick:
        options.rounds, options.warm_up, options.steps = 1, 1, 2
        options.batch_size //= 2
    names = ["ours", *(options.only or [*QUICK[1:], "ours_without_kernels", *PROMPT])]
    if options.quick and not options.only:
        names = list(QUICK)
    results, limits, _ = measure(names, options)
    table = report(results, limits, options)
    errors = {} if options.quick else gradients.measure(options.model)
    print(table)
    if options.write:
        options.write.write_text(table + "\n")
    print(json.dumps(summary(results, limits) | {"gradient_error": errors}))


class Measured(NamedTuple):
    """What was measured.

    Args:
        results: Each variant's measurements, one entry a round that went well.
        limits: The limits by matrix products, in useful tokens per second.
        failures: Why a variant has no measurement, or not one of every round.
    """

    results: dict[str, list[dict[str, Any]]]
    limits: list[float]
    failures: dict[str, str]


def measure(names: list[str], options: Any, deadline: float = math.inf) -> Measured:
    """Measure the variants in turn, round by round.

    The limit is measured before every process: a processor that others use too changes its speed.

    Args:
        names: Of the variants.
        options: Those of ``main``, and ``warm_up`` and ``longest``.
        deadline: By ``time.monotonic()``: no process runs longer, and none is started that would
            by what its variant took before.
    """
    found = Measured({name: [] for name in names}, [], {})
    took: dict[str, float] = {}
    for number in range(options.rounds):
        for name in names:
            if (needed := NEEDS.get(name)) and importlib.util.find_spec(needed) is None:
                found.failures[name] = f"{needed} is not installed"
                print(f"{name}: {found.failures[name]}", file=sys.stderr)
                continue
            started = time.monotonic()
            if deadline - started <= took.get(name, 0):
                found.failures.setdefault(name, f"no time left for round {number + 1}")
                continue
            try:
                found.limits.append(gemm_limit(options))
                found.results[name].append(run(name, options, number, deadline - time.monotonic()))
            except Exception as error:  # the others are measured all the same
                found.failures[name] = f"{error}"
                print(f"{name} failed: {error}", file=sys.stderr)
            took[name] = time.monotonic() - started
            spent = f"{took[name]:.0f} s"
            print(f"round {number + 1}: {name} in {spent}", file=sys.stderr, flush=True)
    return found


def run(name: str, options: Any, seed: int, seconds: float = math.inf) -> dict[str, Any]:
    """Run a variant in a process of its own, on the rows that ``seed`` draws.

    Raises:
        RuntimeError: If it fails, with the last that it said, or takes more than ``seconds``.
    """
    command = [sys.executable, str(HERE / "variants.py"), name, "--model", options.model]
    command += ["--seed", str(seed)]
    for option in ("steps", "batch_size", "precision", "device", "longest"):
        command += [f"--{option.replace('_', '-')}", str(getattr(options, option))]
    limit = None if seconds == math.inf else max(1.0, seconds)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"stopped after {seconds:.0f} s") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise RuntimeError(next((line for line in reversed(said) if "Error: " in line), said[-1]))
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result | {"warm_up": options.warm_up}


def rate(found: list[dict[str, Any]], clock: str = "wall") -> float | None:
    """Return the median useful tokens per second, without each process's warm-up steps."""
    rates = [
        tokens / seconds
        for r in found
        for tokens, seconds in list(zip(r["tokens"], r[clock], strict=True))[r["warm_up"] :]
    ]
    return statistics.median(rates) if rates else None


def layer_shapes(config: Any) -> list[tuple[int, int]]:
    """Return inputs and outputs of the linear layers of one decoder layer."""
    dim, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    width = getattr(config, "head_dim", None) or dim // heads
    shared = config.num_key_value_heads * width
    shapes = [(dim, heads * width), (heads * width, dim)] + [(dim, shared)] * 2
    return shapes + [(dim, inner)] * 2 + [(inner, dim)]


def needed_flops(config: Any, longest: int = workload.LENGTHS[1]) -> float:
    """Return FLOPs per useful token of the products that no LoRA on this model can leave out.

    Each linear layer forward and for the gradient of its input (2 + 2 for a weight), the adapter's
    (6), the causal half of attention (two products forward, four backward), and the head at
    labelled tokens (4).

    Args:
        config: Of the model.
        longest: Tokens of the longest row; lengths are drawn evenly from ``LENGTHS[0]`` on.
    """
    shapes = layer_shapes(config)
    weights = sum(i * o for i, o in shapes)
    adapter = 16 * sum(i + o for i, o in shapes)
    lengths = range(min(workload.LENGTHS[0], longest), longest + 1)
    seen = sum(n * (n + 1) / 2 for n in lengths) / sum(lengths)  # keys of a query, on average
    attention = 6 * 2 * shapes[0][1] * seen
    head = config.vocab_size * config.hidden_size * workload.ANSWER
    return config.num_hidden_layers * (4 * weights + 6 * adapter + attention) + 4 * head


def gemm_limit(options: Any) -> float:
    """Return useful tokens per second if the matrix products of a step were all it did.

    They are those of ``needed_flops``, at the rate measured here for the linear layers.
    """
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(options.model)
    shapes = layer_shapes(config)
    made = {"dtype": torch.bfloat16 if options.precision == "bf16" else torch.float32}
    made["device"] = options.device
    shortest = min(workload.LENGTHS[0], options.longest)
    tokens = options.batch_size * (shortest + options.longest) // 2
    work = [(torch.randn(tokens, i, **made), torch.randn(i, o, **made)) for i, o in shapes]
    seconds = []
    for _ in range(12):
        started = time.perf_counter()
        for x, w in work:
            x @ w
        if options.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    flops = 2 * tokens * sum(i * o for i, o in shapes) / statistics.median(seconds)
    del work
    if options.device == "cuda":
        torch.cuda.empty_cache()  # for the processes that are measured
    return flops / needed_flops(config, options.longest)


def summary(results: dict[str, list[dict[str, Any]]], limits: list[float]) -> dict[str, Any]:
    """Return the ratios; None for a variant without a measurement."""
    own, memory = rate(results["ours"]), peak(results["ours"])
    assert own is not None
    assert memory is not None
    rates = {name: rate(results.get(name, [])) for name in BASELINES}
    peaks = {name: peak(results.get(name, [])) for name in BASELINES}
    prompts = rate(results.get("ours_prompt", [])), rate(results.get("peft_prompt", []))
    recomputed = peak(results.get("ours_recomputed", []))
    trl = peaks["trl_default"]
    return {
        "ratio": {n: None if r is None else round(own / r, 2) for n, r in rates.items()},
        "memory_ratio": {n: None if p is None else round(p / memory, 2) for n, p in peaks.items()},
        "memory_ratio_recomputed": round(trl / recomputed, 2) if trl and recomputed else None,
        "prompt_tuning_ratio": round(prompts[0] / prompts[1], 2) if all(prompts) else None,
        "share_of_gemm_limit": round(own / statistics.median(limits), 3),
    }


def peak(found: list[dict[str, Any]]) -> float | None:
    """Return the median peak memory in bytes."""
    return statistics.median(r["peak_bytes"] for r in found) if found else None


def labelled(found: list[dict[str, Any]]) -> float:
    """Return the share of the useful tokens that is labelled."""
    return sum(map(sum, (r["labelled"] for r in found))) / sum(
        map(sum, (r["tokens"] for r in found))
    )


def report(results: dict[str, list[dict[str, Any]]], limits: list[float], options: Any) -> str:
    """Return the table as Markdown, with the machine's description."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    preload = os.environ.get("LD_PRELOAD")
    preloaded = f", {Path(preload).name} preloaded" if preload else ""
    lines = [
        f"{datetime.date.today()}, {os.cpu_count()} cores of {cpu}, {options.device}, "
        f"{options.precision}, {options.rounds} rounds of "
        f"{options.steps - options.warm_up} measured steps, "
        f"batches of {options.batch_size} rows{preloaded}",
        "",
        "| variant | useful tokens/s | labelled tokens/s | CPU us per token | peak MiB "
        "| ours is faster by | first losses |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    own = rate(results["ours"]) or 1.0
    for name, found in results.items():
        speed, cpu_rate, memory = rate(found), rate(found, "cpu"), peak(found)
        if speed is None or cpu_rate is None or memory is None:
            lines.append(f"| {name} | not measured | | | | | |")
            continue
        losses = ", ".join(f"{loss:.3f}" for loss in found[0]["losses"][:2])
        lines.append(
            f"| {name} | {speed:,.0f} | {speed * labelled(found):,.0f} | {1e6 / cpu_rate:,.0f} "
            f"| {memory / 2**20:,.0f} | {own / speed:.2f} | {losses} |"
        )
    limit = statistics.median(limits)
    lines += [
        "",
        f"Limit by matrix products: {limit:,.0f} tokens/s, the median of {len(limits)} from "
        f"{min(limits):,.0f} to {max(limits):,.0f}; ours is {own / limit:.0%} of it.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
