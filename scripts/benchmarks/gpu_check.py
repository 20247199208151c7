"""The tests that need a GPU, and LoRA there beside HF PEFT's, as a dated report in Markdown.

    bash scripts/gpu_check.sh [--wheels DIR] [--minutes 10] [--write FILE]
    bash scripts/gpu_check.sh --collect-wheels DIR    # where there is a network
    bash scripts/gpu_check.sh --device cpu --tiny     # the same code where there is no GPU

torch, transformers, lightning, peft and pyarrow have to be installed, and pytest, or its wheels in
--wheels. Models are of random weights, written to a temporary folder; nothing is downloaded. Each
section ends by its share of the time and the report is written after each; what was not measured is
said. The exit status is 0 if all passed, 1 if not.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import wheels  # noqa: E402

ROOT = HERE.parents[1]
PACKAGES = ("torch", "transformers", "lightning", "peft", "pyarrow", "flash_attn", "bitsandbytes")
VARIANTS = ("ours", "peft_packed", "peft_packed_flash")
MOST_ROWS = 32  # of a batch: some 7,000 tokens, which fill a GPU
SHARE_OF_TESTS = 0.35  # of the time
LAST = 8  # seconds kept for the report


def main() -> None:
    """Run all sections, and write the report after each."""
    started = time.monotonic()
    options = parsed()
    if options.collect_wheels:
        print("\n".join(wheels.collect(options.collect_wheels)))
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        extra = Path(folder, "wheels")
        unpacked = wheels.unpack(options.wheels, extra) if options.wheels else []
        sys.path.append(str(extra))
        os.environ["PYTHONPATH"] = wheels.module_path(ROOT, *([extra] if unpacked else []))
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        require_packages(options)
        raise SystemExit(check(options, started, Path(folder), unpacked))


def parsed() -> Any:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    today = HERE / f"gpu-{datetime.date.today()}.md"
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, one round, few steps")
    parser.add_argument("--minutes", type=float, default=10.0, help="that all of it may take")
    parser.add_argument("--rounds", type=int, default=3, help="at most, as far as the time goes")
    parser.add_argument("--only", choices=["tests", "throughput"], help="of the sections")
    parser.add_argument("--tests", metavar="EXPRESSION", help="which tests: pytest's -k")
    parser.add_argument("--write", type=Path, default=today, help="default: dated, beside this")
    parser.add_argument("--wheels", type=Path, help="folder of wheels for what is not installed")
    parser.add_argument("--collect-wheels", type=Path, help="download those wheels, and end")
    parser.add_argument("--scratch", help="where the models are written; default: that of tempfile")
    return parser.parse_args()


def require_packages(options: Any) -> None:
    """End with one line if what is needed is not here."""
    names = ("torch", "transformers", "lightning", "peft", "pyarrow")
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise SystemExit(f"error: {', '.join(missing)} is not installed for {sys.executable}")
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "error: --device cuda: torch finds no CUDA device here; --device cpu --tiny runs the "
            "same code on a CPU"
        )


def check(options: Any, started: float, folder: Path, unpacked: list[str]) -> int:
    """Run the sections; return the exit status."""
    import gpu_report
    from gpu_tests import run_tests

    end = started + 60 * options.minutes - LAST
    facts, card = facts_of(options.device)
    facts["from wheels"] = ", ".join(unpacked) or "nothing"
    found = gpu_report.Check(options.device, card, facts)

    def write() -> None:
        found.seconds = time.monotonic() - started
        options.write.write_text(gpu_report.markdown(found))

    if options.only != "throughput":
        share = 1.0 if options.only == "tests" else SHARE_OF_TESTS
        deadline = time.monotonic() + share * (end - time.monotonic())
        if importlib.util.find_spec("pytest") is None:
            found.why_no_tests = "pytest is not installed: give its wheels by --wheels"
        else:
            try:
                found.tests = run_tests(options.device, deadline, dict(os.environ), options.tests)
            except Exception as error:  # the comparison is made all the same
                found.why_no_tests = f"{type(error).__name__}: {error}"
        write()
    if options.only != "tests":
        shapes = ["tiny"] if options.tiny else ["SmolLM2-1.7B", "Llama-3.1-8B"]
        for number, shape in enumerate(shapes):
            now = time.monotonic()
            # a model of 8B takes longer to write and to load than one of 1.7B
            deadline = now + (end - now) * (0.42 if number + 1 < len(shapes) else 1.0)
            try:
                found.comparisons.append(compare(shape, options, folder / shape, deadline))
            except Exception as error:  # the next model is measured all the same
                why = f"{type(error).__name__}: {error}"
                found.comparisons.append(gpu_report.Comparison(shape, why_not=why, failed=True))
            shutil.rmtree(folder / shape, ignore_errors=True)
            write()
    print(options.write.read_text())
    return 1 if gpu_report.problems(found) else 0


def compare(shape: str, options: Any, folder: Path, deadline: float) -> Any:
    """Write a model and measure the variants on it in interleaved rounds."""
    import random_models
    import throughput
    from gpu_report import Comparison

    config = random_models.config_of(shape)
    weights = random_models.weight_bytes(config)
    rows, longest = (2, 60) if options.tiny else (MOST_ROWS, throughput.workload.LENGTHS[1])
    if options.device == "cuda" and not options.tiny:
        rows = rows_that_fit(config, weights, card_memory())
        if rows < 1:
            return Comparison(
                shape,
                why_not=f"{weights / 2**30:.0f} GiB of weights and a row do not fit into the "
                f"card's {card_memory() / 2**30:.0f} GiB",
            )
    if (free := shutil.disk_usage(folder.parent).free) < 1.1 * weights:
        return Comparison(
            shape,
            why_not=f"{weights / 2**30:.0f} GiB of weights do not fit into the "
            f"{free / 2**30:.0f} GiB that are free at {folder.parent}; --scratch names another",
        )
    command = [sys.executable, str(HERE / "random_models.py"), shape, str(folder)]
    try:
        left = max(1.0, deadline - time.monotonic())
        subprocess.run(
            [*command, "--device", options.device],
            check=True,
            timeout=left,
            capture_output=True,
            text=True,
        )
    except subprocess.TimeoutExpired:
        return Comparison(shape, why_not="writing it took all of the time", failed=True)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [f"status {error.returncode}"])[-1]
        return Comparison(shape, why_not=f"it could not be written: {last}", failed=True)
    steps = (1, 2) if options.tiny else (2, 6)  # to warm up, and measured
    setting = argparse.Namespace(
        model=str(folder),
        rounds=1 if options.tiny else options.rounds,
        steps=sum(steps),
        warm_up=steps[0],
        batch_size=rows,
        precision="bf16",
        device=options.device,
        longest=longest,
    )
    measured = throughput.measure(list(VARIANTS), setting, deadline)
    words = (
        f"Random weights, bf16, r 16 on all linear layers, {rows} rows of up to {longest} tokens "
        f"end to end in a step; medians of {steps[1]} steps of each process, after {steps[0]} to "
        "warm up."
    )
    flops = throughput.needed_flops(config, longest)
    return Comparison(shape, measured=measured, setting=words, flops=flops)


def rows_that_fit(config: Any, weights: int, memory: int) -> int:
    """Return how many rows of the benchmark a batch may have on a card of ``memory`` bytes.

    By what HF PEFT keeps for the backward pass under autocast, counted from transformers' Llama:
    some 24 tensors of the hidden and 8 of the inner size for each token and layer, of two bytes.
    """
    from workload import LENGTHS

    kept = 2 * config.num_hidden_layers * (24 * config.hidden_size + 8 * config.intermediate_size)
    return min(MOST_ROWS, int((0.8 * memory - weights) / (kept * sum(LENGTHS) / 2)))


def card_memory() -> int:
    """Return the bytes of the GPU's memory."""
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)


def facts_of(device: str) -> tuple[dict[str, str], str]:
    """Return what is to be known of the machine, and the card's name."""
    facts, card = {}, ""
    if device == "cuda":
        import torch

        card = torch.cuda.get_device_name(0)
        major, minor = torch.cuda.get_device_capability(0)
        facts["card"] = f"{card}, {card_memory() / 2**30:.0f} GiB, compute {major}.{minor}"
        facts["driver"] = nvidia_smi("driver_version")
        facts["power limit"] = nvidia_smi("power.limit")
        facts["CUDA"] = str(torch.version.cuda)
        facts["torch's flash kernel over sequences"] = flash_kernel()
    facts["processor"] = f"{os.cpu_count()} cores, {platform.machine()}"
    facts["Python"] = platform.python_version()
    facts |= {name: version_of(name) for name in PACKAGES}
    return facts, card


def flash_kernel() -> str:
    """Return whether the module's attention has the kernel that it takes in half precision."""
    import torch

    from peft_lightning.kernels.attention_cuda import has_varlen

    return "there" if has_varlen(torch.device("cuda", 0)) else "not there: sequences go one by one"


def nvidia_smi(field: str) -> str:
    """Return what nvidia-smi says of the first card."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "not known: nvidia-smi does not answer"
    return done.stdout.strip()


def version_of(name: str) -> str:
    """Return the version of a package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
