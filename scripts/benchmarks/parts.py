"""What the time of a training step goes to: the products of the base, of LoRA, attention, the rest.

    python scripts/benchmarks/parts.py [--precision fp32]

Steps of variants.py's ``ours``, each of the same batch; the profiler's times of the last ones.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parent))
import variants
import workload
from throughput import MODEL, WARM_UP

RANKS = 64  # a product with so few rows, columns or summands is LoRA's
OPERATIONS = {
    "attention": ("_Attention",),
    "norms, gates, rotary positions": ("_RMSNorm", "_Gated", "_Rotary", "_LoRALinear"),
    "sums of the residual stream": ("aten::add", "aten::add_"),
}


def main() -> None:
    """Train, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL, help="a model's folder or hub id")
    parser.add_argument("--steps", type=int, default=5, help="that are profiled")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(namespace=argparse.Namespace(device="cpu", rate=1e-4))
    options.model = str(Path(options.model).expanduser())
    clock, spent = Profiling(options.steps), Counter[str]()
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    vocabulary = AutoConfig.from_pretrained(options.model).vocab_size
    batches = workload.batches(tokenizer, 1, options.batch_size, options.seed)
    variants.ours(options, tokenizer, batches * (WARM_UP + options.steps), clock)
    for event in clock.profiler.events():
        spent[part(event, vocabulary)] += event.self_cpu_time_total / 1e3 / options.steps
    tokens, whole = sum(len(p) + len(a) for p, a in batches[0]), sum(spent.values())
    print(f"{tokens} tokens, {options.precision}\n\n| part | ms | share |\n|---|---:|---:|")
    for name, ms in spent.most_common():
        print(f"| {name} | {ms:,.0f} | {ms / whole:.0%} |")


class Profiling(variants.Clock):
    """Profiles the last steps."""

    def __init__(self, steps: int) -> None:
        super().__init__("cpu")
        self.profiler = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
        self.steps = steps

    def start(self) -> None:
        """Begin a step."""
        if len(self.wall) == WARM_UP:
            self.profiler.start()
        super().start()

    def stop(self, loss: float) -> None:
        """End a step."""
        super().stop(loss)
        if len(self.wall) == WARM_UP + self.steps:
            self.profiler.stop()


def part(event: Any, vocabulary: int) -> str:
    """Return which part of a step an operation is of."""
    sizes = {size for shape in event.input_shapes for size in shape}
    if event.name in ("aten::mm", "aten::addmm", "aten::addmm_"):
        if vocabulary in sizes:
            return "products of the head"
        return "products of LoRA" if min(sizes) <= RANKS else "products of the base"
    for name, operations in OPERATIONS.items():
        if event.name.removesuffix("Backward") in operations:
            return name
    return "other operations of the head" if vocabulary in sizes else "the rest"


if __name__ == "__main__":
    main()
