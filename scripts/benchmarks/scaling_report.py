"""The table and the curves of ``scaling.py``."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

Point = dict[str, Any]


def table(results: list[Point], options: Any, setting: str) -> str:
    """Return the results as Markdown, with the machine's description."""
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.split(":")[1].strip() for line in info if line.startswith("model name"))
    lines = [
        "# Scaling",
        "",
        f"{datetime.date.today()}, {os.cpu_count()} cores of {next(names, platform.machine())}, "
        f"{options.device}, {options.precision}. Base: {Path(options.model).name}; {setting}. "
        "Layers and width: random models of the same kind, width with 6 layers.",
    ]
    for section in ("length", "rank", "layers", "width"):
        if found := [r for r in results if r["section"] == section]:
            lines += [
                "",
                f"| {section} | parameters | trained | ms a step | CPU ms | tokens/s | peak MiB |",
                "|---:|---:|---:|---:|---:|---:|---:|",
            ]
        for r in found:
            lines.append(
                f"| {r[section]:,} | {r['parameters']:,} | {r['trained']:,} "
                f"| {1e3 * r['seconds']:,.0f} | {1e3 * r['cpu_seconds']:,.0f} "
                f"| {r['tokens'] / r['seconds']:,.0f} "
                f"| {r['peak_mib']:,.0f} |"
            )
    if found := [r for r in results if r["section"] == "frozen"]:
        lines += [
            "",
            "| adapted layers | ms a step | faster by | peak MiB |",
            "|---|---:|---:|---:|",
        ]
    for r in found:
        what = "upper third" if r.get("upper") else "all"
        what += ", layers below cached" if r.get("cached") else ""
        ratio = found[0]["seconds"] / r["seconds"]
        lines.append(f"| {what} | {1e3 * r['seconds']:,.0f} | {ratio:.2f} | {r['peak_mib']:,.0f} |")
    if found := [r for r in results if r["section"] == "rows"]:
        lines += [
            "",
            "| rows | tokenised rows/s | opened again in s | steps of an epoch "
            "| peak MiB, tokenising and training |",
            "|---:|---:|---:|---:|---:|",
        ]
    for r in found:
        lines.append(
            f"| {r['rows']:,} | {r['rows'] / r['made_seconds']:,.0f} "
            f"| {r['opened_seconds']:.2f} | {r['steps']:,} | {r['peak_mib']:,.0f} |"
        )
    for r in (r for r in results if r["section"] == "start"):
        lines += [
            "",
            f"Start-up: {r['first_step_seconds']:.1f} s from the command to the end of the quick "
            f"start's first step; its base loads in {r['load_seconds']:.2f} s.",
        ]
    return "\n".join(lines)


def plot(results: list[Point], file: Path) -> None:
    """Draw milliseconds a step and peak memory against what varies; nothing where nothing does."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    sections = ("length", "rank", "layers", "width", "rows")
    sections = tuple(s for s in sections if any(r["section"] == s for r in results))
    if not sections:
        return
    figure, axes = pyplot.subplots(2, len(sections), figsize=(3 * len(sections), 5), squeeze=False)
    for (upper, lower), section in zip(axes.T, sections, strict=True):
        found = [r for r in results if r["section"] == section]
        x = [r[section] for r in found]
        lower.plot(x, [r["peak_mib"] for r in found], marker="o", color="tab:orange")
        rows = section == "rows"
        key = "made_seconds" if rows else "seconds"
        upper.plot(x, [1e3 * r[key] / (r["rows"] if rows else 1) for r in found], marker="o")
        upper.set_title(section)
        upper.set_ylabel("ms a row, tokenising" if rows else "ms a step")
        lower.set_ylabel("peak MiB")
        for axis in (upper, lower):
            axis.set_ylim(bottom=0)
            if section in ("rank", "rows"):
                axis.set_xscale("log")
    figure.tight_layout()
    figure.savefig(file, dpi=100)
