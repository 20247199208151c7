"""What a step costs against sequence length, rank, layers, width and rows; start-up; cached layers.

    python scripts/benchmarks/scaling.py [--quick] [--only SECTION ...] [--results FILE]

Every point is a process of its own and goes into ``--results`` as soon as it is measured: points
that are there are not measured again. Beside that file, the table is written as Markdown and the
curves as PNG.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from scaling_report import plot, table  # noqa: E402

MODEL = "~/.cache/peft_lightning/models/SmolLM2-135M-Instruct"
TOKENS = 1024  # of a batch, where its length is not what varies
WARM_UP, MEASURED = 2, 3  # steps
ROWS_OF_A_BATCH = 500  # where their number is what varies
STEP = {"length": 1024, "rank": 16, "layers": None, "width": None, "upper": None, "cached": False}

SETTING = (
    f"LoRA r {STEP['rank']} on all linear layers and batches of {TOKENS:,} tokens in rows of "
    f"{STEP['length']:,}, where nothing else is said; medians of {MEASURED} steps"
)

Point = dict[str, Any]


def points(quick: bool) -> list[Point]:
    """Return all points: a section, and what is away from ``STEP`` in it."""
    lengths = (256, 512) if quick else (256, 512, 1024, 2048, 4096)
    ranks = (1, 16) if quick else (1, 4, 16, 64, 256)
    layers = (2, 4) if quick else (5, 10, 20, 30)
    widths = (192, 384) if quick else (192, 384, 576, 1152)
    rows = (1_000, 10_000) if quick else (1_000, 10_000, 100_000, 1_000_000)
    frozen: tuple[Point, ...] = ({}, {"upper": 1 / 3}, {"upper": 1 / 3, "cached": True})
    return [
        *({"section": "length", "length": n} for n in lengths),
        *({"section": "rank", "rank": n} for n in ranks),
        *({"section": "layers", "layers": n} for n in layers),
        *({"section": "width", "width": n, "layers": 6} for n in widths),
        *({"section": "frozen", **options} for options in frozen),
        *({"section": "rows", "rows": n} for n in rows),
        {"section": "start"},
    ]


def main() -> None:
    """Measure what is missing, and write the table and the plot of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL, help="a model's folder")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--only", nargs="+", help="sections: length, rank, layers, width, ...")
    parser.add_argument("--quick", action="store_true", help="two small points of each curve")
    today = HERE / f"scaling-{datetime.date.today()}.json"
    parser.add_argument("--results", type=Path, default=today, help="default: dated, here")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.model = str(Path(options.model).expanduser())
    if options.point:
        print(json.dumps(measured(options.point, options)))
        return
    results = json.loads(options.results.read_text()) if options.results.exists() else []
    for point in points(options.quick):
        wanted = not options.only or point["section"] in options.only
        if wanted and not any(point.items() <= result.items() for result in results):
            results.append(point | in_process(point, options))
            options.results.write_text(json.dumps(results, indent=1) + "\n")
    text = table(results, options, SETTING)
    options.results.with_suffix(".md").write_text(text + "\n")
    plot(results, options.results.with_suffix(".png"))
    print(text)


def in_process(point: Point, options: Any) -> Point:
    """Measure a point in a process of its own."""
    command = [sys.executable, __file__, "--point", json.dumps(point)]
    for name in ("model", "device", "precision"):
        command += [f"--{name}", getattr(options, name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{point} failed:\n{done.stderr}")
    result: Point = json.loads(done.stdout.splitlines()[-1])
    print(point, result, file=sys.stderr, flush=True)
    return result


def measured(point: Point, options: Any) -> Point:
    """Return what is measured at a point."""
    with tempfile.TemporaryDirectory() as folder:
        if point["section"] == "rows":
            return many_rows(point["rows"], Path(folder), options)
        if point["section"] == "start":
            return start_up(Path(folder), options)
        return step({**STEP, **point}, Path(folder), options)


# ---- one optimizer step ------------------------------------------------------------------------


def step(point: Point, folder: Path, options: Any) -> Point:
    """Return the median seconds of an optimizer step and the peak memory."""
    from transformers import AutoConfig

    from peft_lightning import LoRA

    model, config = options.model, AutoConfig.from_pretrained(options.model)
    if point["layers"] or point["width"]:
        model = random_model(folder / "model", config, point["layers"], point["width"])
        config = AutoConfig.from_pretrained(model)
    upper = None
    if point["upper"]:
        first = round(config.num_hidden_layers * (1 - point["upper"]))
        upper = list(range(first, config.num_hidden_layers))
    adapter = LoRA(r=point["rank"], target_modules="all-linear", layers_to_transform=upper)
    rows = max(1, TOKENS // point["length"])
    write_long_rows(folder / "rows.jsonl", rows * (WARM_UP + MEASURED), point["length"])
    cut = {"max_length": point["length"], "truncation": "truncate"}
    data = {**cut, "batch_size": rows, "val_fraction": 0}
    clock, module = fit(model, adapter, folder, options, data, cache_hidden_states=point["cached"])
    trained = [p.numel() for p in module.parameters() if p.requires_grad]
    return {
        "tokens": rows * point["length"],
        "seconds": statistics.median(clock.wall[WARM_UP:]),
        "cpu_seconds": statistics.median(clock.cpu[WARM_UP:]),
        "peak_mib": peak_mib(options.device),
        "parameters": sum(p.numel() for p in module.parameters()) - sum(trained),
        "trained": sum(trained),
    }


def fit(
    model: str,
    adapter: Any,
    folder: Path,
    options: Any,
    data: dict[str, Any],
    steps: int = WARM_UP + MEASURED,
    **module: Any,
) -> tuple[Any, Any]:
    """Train on ``rows.jsonl`` in ``folder`` as the command line would; return clock and module.

    ``steps`` -1 is one epoch.
    """
    import lightning as L
    import torch
    from lightning.pytorch.callbacks import Callback
    from variants import Clock

    from peft_lightning import CausalLMModule, SFTDataModule

    clock = Clock(options.device)

    class Timer(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            clock.start()

        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            clock.stop(trainer.callback_metrics["train/loss"].item())

    half = options.precision == "bf16"
    torch.manual_seed(0)
    dtype = "bfloat16" if half else "float32"
    trained = CausalLMModule(model, adapter, dtype=dtype, **module)
    rows = SFTDataModule(
        train=str(folder / "rows.jsonl"), cache_dir=str(folder / "cache"), layout="flat", **data
    )
    trainer = L.Trainer(
        accelerator="gpu" if options.device == "cuda" else "cpu",
        devices=1,
        max_steps=steps,
        max_epochs=1,
        precision="bf16-mixed" if half else "32-true",
        callbacks=[Timer()],
        logger=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    trainer.fit(trained, rows)
    return clock, trained


def random_model(folder: Path, config: Any, layers: int | None, width: int | None) -> str:
    """Write a model of the same kind with other sizes and random weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.name_or_path)
    config.num_hidden_layers = layers or config.num_hidden_layers
    if width:  # heads of the same size, so that only their number changes
        heads = width // (config.hidden_size // config.num_attention_heads)
        config.hidden_size, config.intermediate_size = width, 8 * width // 3
        config.num_attention_heads = config.num_key_value_heads = heads
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_long_rows(file: Path, count: int, length: int) -> None:
    """Write rows that ``max_length`` cuts at ``length`` tokens, about half of them labelled."""
    import workload

    code, docs = workload._texts()
    with file.open("w") as out:
        for i in range(count):
            start = 997 * i
            row = {"prompt": code[start:][: 2 * length], "completion": docs[start:][: 8 * length]}
            out.write(json.dumps(row) + "\n")


def peak_mib(device: str) -> float:
    """Return the peak memory: of the device on CUDA, else of this process."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


# ---- rows --------------------------------------------------------------------------------------


def many_rows(count: int, folder: Path, options: Any) -> Point:
    """Return the rate of tokenising ``count`` short rows, of opening them again, and the memory.

    A tiny model sees each of them once. They are of one length: with batches of many shapes the
    peak would be that of the matrix library's kernels, of which it keeps up to 1,024.
    """
    from transformers import AutoConfig

    from peft_lightning import LoRA, SFTDataModule

    with (folder / "rows.jsonl").open("w") as out:
        for i in range(count):
            row = {"prompt": f"is {i:07} a number?", "completion": "yes"}
            out.write(json.dumps(row) + "\n")
    seconds = []
    for _ in ("made", "opened"):
        started = time.perf_counter()
        data = SFTDataModule(
            train=str(folder / "rows.jsonl"),
            tokenizer=options.model,
            cache_dir=str(folder / "cache"),
            val_fraction=0,
        )
        data.setup("fit")
        seconds.append(time.perf_counter() - started)
    config = AutoConfig.from_pretrained(options.model)
    small = random_model(folder / "model", config, 2, 128)
    batches = {"batch_size": ROWS_OF_A_BATCH, "val_fraction": 0}
    clock, _ = fit(small, LoRA(r=4), folder, options, batches, steps=-1)
    return {
        "steps": len(clock.wall),
        "made_seconds": seconds[0],
        "opened_seconds": seconds[1],
        "peak_mib": peak_mib("cpu"),
    }


# ---- start-up ----------------------------------------------------------------------------------


def start_up(folder: Path, options: Any) -> Point:
    """Return the seconds of the quick start's fit up to its first step, and of loading the base.

    The tokens are there already, as in every run but the first.
    """
    code = (
        "import sys, time\n"
        "from lightning.pytorch.callbacks import Callback\n"
        "class First(Callback):\n"
        "    def on_train_batch_end(self, *args):\n"
        "        print('first step', time.time(), flush=True)\n"
    )
    (folder / "first_step.py").write_text(code)
    root = HERE.parents[1]
    command = [sys.executable, "-m", "peft_lightning", "fit"]
    command += ["--config", str(root / "configs" / "quickstart.yaml")]
    command += ["--model.base_model", options.model, "--trainer.max_steps", "1"]
    command += ["--trainer.default_root_dir", str(folder / "run")]
    command += ["--data.cache_dir", str(folder / "cache")]
    command += ["--trainer.callbacks+", "first_step.First"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    spent = []
    for _ in range(4):
        started = time.time()
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, check=True
        )
        spent.append(float(done.stdout.partition("first step ")[2].split()[0]) - started)
    from peft_lightning import load_base_model

    loads = []
    for _ in range(3):
        started = time.perf_counter()
        load_base_model(options.model, dtype="bfloat16")
        loads.append(time.perf_counter() - started)
    return {
        "first_step_seconds": statistics.median(spent[1:]),
        "load_seconds": statistics.median(loads),
    }


if __name__ == "__main__":
    main()
