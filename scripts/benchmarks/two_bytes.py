"""Speed and memory of a base stored in float32, in two bytes a weight, and in four or eight bits.

    python scripts/benchmarks/two_bytes.py --out two_bytes-DATE.md
    python scripts/benchmarks/two_bytes.py --shapes 1.7B --storage bfloat16 4bit --tokens 512

All are computed in float32, each in a process of its own: a training step of LoRA on all linear
layers, flat batches of rows of up to 512 tokens, half of them labelled; and generation, one prompt
of 16 tokens at a time. The model of the first shape is the quick start's; the others are random
ones, written to a folder once. Peak memory is that of a step, or of generation, without loading.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MODEL = "~/.cache/peft_lightning/models/SmolLM2-135M-Instruct"
SHAPES = {  # SmolLM2's; 135M is the quick start's own
    "1.7B": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32}
    | {"num_key_value_heads": 32, "intermediate_size": 8192, "vocab_size": 49152},
}
STORAGE = ("float32", "bfloat16", "4bit", "8bit")
BNB = "bitsandbytes 4bit"  # its own products
LONGEST, PROMPT, ANSWER = 512, 16, 32  # tokens
SECONDS, MOST = 20, 12  # of measured steps, and their number


def main() -> None:
    """Measure each case in a process of its own, and write a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=["135M"], choices=["135M", *SHAPES])
    parser.add_argument("--storage", nargs="+", default=list(STORAGE), choices=[*STORAGE, BNB])
    parser.add_argument("--tokens", nargs="+", type=int, default=[64, 128, 512, 2048])
    parser.add_argument("--model", default=MODEL, help="of 135M")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="of random models, 3.4 GB")
    parser.add_argument("--out", help="Markdown file to write")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measured(**json.loads(options.case))))
        return
    results = []
    for shape in options.shapes:
        folder = str(Path(options.model).expanduser())
        if shape in SHAPES:
            folder = random_model(Path(options.folder, f"two_bytes-{shape}"), shape)
        for storage in options.storage:
            for tokens in [*options.tokens, 0]:
                case = {"folder": folder, "storage": storage, "tokens": tokens}
                results.append({"shape": shape, **case, **in_process(case)})
                print(results[-1], file=sys.stderr, flush=True)
    text = report(results)
    print(text)
    if options.out:
        Path(options.out).write_text(text + "\n")


def in_process(case: dict[str, Any]) -> dict[str, Any]:
    """Return what a process of its own measures; why not, if it fails."""
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def random_model(folder: Path, shape: str) -> str:
    """Write a random bfloat16 model of ``shape``, if it is not there; return its folder."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    if not (folder / "config.json").is_file():
        config = LlamaConfig(**SHAPES[shape], tie_word_embeddings=True, dtype=torch.bfloat16)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return str(folder)


def measured(folder: str, storage: str, tokens: int) -> dict[str, Any]:
    """Return tokens per second and MiB of training steps of so many tokens; of generation if 0."""
    import torch

    from peft_lightning import LoRA
    from peft_lightning.base_model import load_base_model
    from peft_lightning.kernels.float32_compute import compute_in_float32
    from peft_lightning.kernels.gated_mlp import fuse_gated_mlps
    from peft_lightning.kernels.rms_norm import fuse_norms
    from peft_lightning.kernels.rotary import fuse_rotary
    from peft_lightning.loss import CausalLMLoss

    torch.manual_seed(0)
    if storage == BNB:
        from peft_lightning.base_model import quantization

        quantization.multiply_packed = lambda model: 0
    packed = storage.endswith("bit")
    model: Any = load_base_model(
        folder,
        dtype="bfloat16" if packed else storage,
        quantization=storage.split()[-1] if packed else None,
        attn_implementation="peft_lightning" if tokens else "sdpa",
    )
    compute_in_float32(model)
    fuse_norms(model), fuse_gated_mlps(model), fuse_rotary(model)
    adapter = LoRA(r=16)
    adapter.attach(model)
    loaded = memory()["VmRSS"]
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    outputs = CausalLMLoss(model, adapter)
    rate = training(model, outputs, tokens) if tokens else generation(model)
    return {
        "rate": rate,
        "loaded_mib": loaded,
        "peak_mib": memory()["VmHWM"],
        "threads": torch.get_num_threads(),
    }


def training(model: Any, outputs: Any, tokens: int) -> float:
    """Return the median tokens per second of forward and backward pass."""
    import torch

    from peft_lightning.data.collate import flat_collate

    draw = torch.Generator().manual_seed(0)
    rows = []
    for start in range(0, tokens, LONGEST):
        ids = torch.randint(100, 40_000, (min(LONGEST, tokens - start),), generator=draw)
        labels = ids.clone()
        labels[: len(ids) // 2] = -100
        rows.append({"input_ids": ids.numpy(), "labels": labels.numpy()})
    batch = flat_collate(rows)

    def step() -> None:
        nll, _, _ = outputs.nll(batch)
        nll.backward()
        model.zero_grad()

    return tokens / seconds(step)


def generation(model: Any) -> float:
    """Return the median tokens per second of greedy answers."""
    import torch

    from peft_lightning.inference.generate import generate_tokens

    class Ends:  # what generate_tokens asks of a tokenizer
        pad_token_id, eos_token_id, chat_template = 0, None, None

    rows = [torch.arange(100, 100 + PROMPT).tolist()]
    adapter: Any = None  # its tensors are in the model, and leave inputs alone

    def answer() -> None:
        generate_tokens(model, adapter, Ends(), rows, ANSWER, end_ids=())  # type: ignore[arg-type]

    return ANSWER / seconds(answer)


def seconds(work: Any) -> float:
    """Return the median seconds of ``work``, after it was done twice."""
    times: list[float] = []
    for _ in range(2):
        work()
    while len(times) < 3 or (sum(times) < SECONDS and len(times) < MOST):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def memory() -> dict[str, float]:
    """Return this process's memory in MiB: VmRSS as it is, VmHWM at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    return {name: int(found[name]) / 2**10 for name in ("VmRSS", "VmHWM")}


def report(results: list[dict[str, Any]]) -> str:
    """Return a Markdown table."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    threads = next((r["threads"] for r in results if "threads" in r), "?")
    lines = [
        "# Two bytes a weight, float32 products",
        "",
        f"{cpu}{f', limited to {limit}' if limit else ''}, {threads} threads. Each figure is a "
        "median in a process of its own ([two_bytes.py](two_bytes.py)). The last two columns "
        "are shares of float32's.",
        "",
        "| model | tokens | stored in | tokens/s | loaded MiB | peak MiB | speed | memory |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    own = {(r["shape"], r["tokens"]): r for r in results if r["storage"] == "float32"}
    for r in sorted(results, key=lambda r: (r["shape"], not r["tokens"], r["tokens"])):
        what = f"| {r['shape']} | {r['tokens'] or 'generation'} | {r['storage']} "
        if "error" in r:
            lines.append(f"{what}| {r['error']} | | | | |")
            continue
        base = own.get((r["shape"], r["tokens"]), {})
        shares = [f"{r[k] / base[k]:.2f}" if base.get(k) else "" for k in ("rate", "peak_mib")]
        lines.append(
            f"{what}| {r['rate']:,.1f} | {r['loaded_mib']:,.0f} | {r['peak_mib']:,.0f} "
            f"| {shares[0]} | {shares[1]} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
