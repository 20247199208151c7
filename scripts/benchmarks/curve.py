"""Loss over 200 steps of ours and of TRL with HF PEFT: same start, same rows in the same order.

    python scripts/benchmarks/curve.py [--seeds 3] [--write FILE.md]

Each seed decides initial adapter, rows and their lengths, for both alike. Short rows and a small
batch keep it to minutes on a CPU; bfloat16 autocast, TRL's defaults otherwise.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
MODEL = "~/.cache/peft_lightning/models/SmolLM2-135M-Instruct"
SMOOTHED = 20  # steps that a figure is the mean of
VARIANTS = ("ours", "trl_sequential")


def main() -> None:
    """Train each variant with each seed, print the table, and write table and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL, help="a model's folder or hub id")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rate", default="5e-4", help="learning rate")
    parser.add_argument("--write", type=Path, help="Markdown file; a plot is put beside it")
    options = parser.parse_args()
    curves = {
        (name, seed): train(name, seed, options)
        for seed in range(options.seeds)
        for name in VARIANTS
    }
    table = report(curves, options)
    print(table)
    if options.write:
        plot(curves, options.write.with_suffix(".png"))
        options.write.write_text(f"{table}\n\n![losses]({options.write.stem}.png)\n")


def train(name: str, seed: int, options: argparse.Namespace) -> list[float]:
    """Return the loss of each step of a variant, in a process of its own."""
    settings = {"steps": options.steps, "seed": seed, "rate": options.rate}
    settings |= {"model": str(Path(options.model).expanduser()), "batch-size": 2, "longest": 96}
    command = [sys.executable, str(HERE / "variants.py"), name]
    for option, value in settings.items():
        command += [f"--{option}", str(value)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: list[float] = json.loads(done.stdout.splitlines()[-1])["losses"]
    print(f"{name}, seed {seed}: {found[0]:.3f} to {found[-1]:.3f}", file=sys.stderr, flush=True)
    return found


def smooth(losses: list[float]) -> list[float]:
    """Return the means of consecutive windows of ``SMOOTHED`` steps."""
    starts = range(0, len(losses) - SMOOTHED + 1, SMOOTHED)
    return [statistics.fmean(losses[i : i + SMOOTHED]) for i in starts]


def report(curves: dict[tuple[str, int], list[float]], options: argparse.Namespace) -> str:
    """Return the table as Markdown: each window's losses, and how far apart the two are."""
    lines = [
        f"{datetime.date.today()}, {options.steps} steps, learning rate {options.rate}, bfloat16 "
        f"autocast. Mean loss of {SMOOTHED} steps in nats per labelled token.",
        "",
        "| seed | steps | ours | TRL + HF PEFT | difference |",
        "|---:|---|---:|---:|---:|",
    ]
    furthest = []
    for seed in range(options.seeds):
        ours, theirs = (smooth(curves[name, seed]) for name in VARIANTS)
        apart = [a - b for a, b in zip(ours, theirs, strict=True)]
        furthest.append(max(map(abs, apart)))
        for i in (0, len(ours) // 2, len(ours) - 1):
            steps = f"{i * SMOOTHED + 1}-{(i + 1) * SMOOTHED}"
            lines.append(
                f"| {seed} | {steps} | {ours[i]:.4f} | {theirs[i]:.4f} | {apart[i]:+.4f} |"
            )
    lasts = [smooth(curves["ours", seed])[-1] for seed in range(options.seeds)]
    lines += ["", f"Furthest apart in any window: {max(furthest):.4f}."]
    if len(lasts) > 1:
        lines[-1] += f" Between seeds the last window varies by {statistics.stdev(lasts):.4f}."
    return "\n".join(lines)


def plot(curves: dict[tuple[str, int], list[float]], path: Path) -> None:
    """Draw the smoothed losses of all runs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for (name, seed), losses in curves.items():
        means = smooth(losses)
        steps = [(i + 1) * SMOOTHED for i in range(len(means))]
        style = "-" if name == "ours" else "--"
        label = f"{'ours' if name == 'ours' else 'TRL + HF PEFT'}, seed {seed}"
        axes.plot(steps, means, style, color=f"C{seed}", label=label)
    axes.set(xlabel="step", ylabel="loss, nats per labelled token")
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
