"""The report of the GPU check as Markdown: the machine, the tests, the comparison."""

from __future__ import annotations

import datetime
import re
import statistics
from dataclasses import dataclass, field

from gpu_tests import Tests
from throughput import Measured, peak, rate

# dense bfloat16, TFLOP/s, by NVIDIA's data sheets; the first that the card's name has holds
PEAKS = {
    "B200": 2250.0,
    "GH200": 989.4,
    "H200": 989.4,
    "H100 PCIe": 756.5,
    "H100 NVL": 835.5,
    "H100": 989.4,
    "A100": 312.0,
    "L40S": 362.05,
    "L4": 121.0,
}


@dataclass
class Comparison:
    """What was measured with one model.

    Args:
        shape: Its name.
        why_not: Why nothing was measured; empty if something was.
        failed: Whether that is a failure, and not what this machine cannot do.
        setting: Rows, steps, in words.
        flops: Needed for a useful token.
    """

    shape: str
    measured: Measured | None = None
    why_not: str = ""
    failed: bool = False
    setting: str = ""
    flops: float = 0.0


@dataclass
class Check:
    """The whole check.

    Args:
        device: cuda or cpu.
        card: Its name, if it is a GPU.
        facts: Of the machine, by name.
        tests: None if they did not run, and ``why_no_tests`` says why.
        comparisons: One of each model.
        seconds: That all of it has taken so far.
    """

    device: str
    card: str
    facts: dict[str, str]
    tests: Tests | None = None
    why_no_tests: str = ""
    comparisons: list[Comparison] = field(default_factory=list)
    seconds: float = 0.0


def peak_flops(card: str) -> float | None:
    """Return the peak of a card in bf16 FLOP/s, None if it is not in ``PEAKS``."""
    known = (1e12 * tera for name, tera in PEAKS.items() if re.search(rf"\b{name}\b", card))
    return next(known, None)


def problems(check: Check) -> list[str]:
    """Return what failed; what this machine does not have is no failure."""
    found = [check.why_no_tests] if check.why_no_tests else []
    if check.tests:
        found += check.tests.problems
        found += [f"{n}: {check.tests.reasons.get(n, '')[:300]}" for n in check.tests.failed()]
    for each in check.comparisons:
        if each.failed:
            found.append(f"{each.shape}: {each.why_not}")
        if each.measured:
            missing = {n: why for n, why in each.measured.failures.items() if not absent(why)}
            results = each.measured.results
            found += [f"{each.shape}, {n}: {w}" for n, w in missing.items() if not results[n]]
    return found


def absent(why: str) -> bool:
    """Whether a variant was left out since its package is not installed."""
    return why.endswith("is not installed")


def markdown(check: Check) -> str:
    """Return the report."""
    today = datetime.date.today()
    lines = [f"# GPU check, {today}", ""]
    if check.device == "cpu":
        lines += [
            "Run on a CPU with tiny models, to try the check itself: no GPU was measured.",
            "",
        ]
    lines += ["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in check.facts.items())]
    lines += [f"| time | {check.seconds:.0f} s |", "", "## Tests", "", *_tests(check)]
    for each in check.comparisons:
        lines += ["", f"## LoRA on a model of {each.shape}'s shape", "", *_comparison(each, check)]
    wrong = problems(check)
    lines += ["", "## Result", ""]
    lines += [f"- {line}" for line in wrong] or ["All passed that this machine can do."]
    return "\n".join(lines) + "\n"


def _tests(check: Check) -> list[str]:
    if check.tests is None:
        return [f"Not run: {check.why_no_tests or 'not asked for'}."]
    tests, counts = check.tests, check.tests.counts()
    lines = [
        f"{counts['PASSED']} passed, {len(tests.failed())} failed, {counts['SKIPPED']} skipped, "
        f"in {tests.seconds:.0f} s."
    ]
    skipped: dict[str, int] = {}
    for name, how in tests.outcomes.items():
        if how == "SKIPPED":
            reason = tests.reasons.get(name, "no reason given").removeprefix("Skipped: ")
            skipped[reason] = skipped.get(reason, 0) + 1
    lines += [f"\nSkipped, {count}: {reason}" for reason, count in skipped.items()]
    return lines


def _comparison(each: Comparison, check: Check) -> list[str]:
    if each.measured is None:
        return [f"Not measured: {each.why_not}."]
    results, limits, failures = each.measured
    lines = [
        each.setting,
        "",
        "| variant | rounds | useful tokens/s | peak MiB | share of the products' rate "
        "| share of the card's peak | ours is faster by | first losses |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    own, whole = rate(results["ours"]), peak_flops(check.card)
    for name, found in results.items():
        speed, memory = rate(found), peak(found)
        if speed is None or memory is None:
            lines.append(f"| {name} | not measured: {failures.get(name, '')} | | | | | | |")
            continue
        of_limit = f"{speed / statistics.median(limits):.0%}" if limits else "not measured"
        of_peak = f"{speed * each.flops / whole:.0%}" if whole else "not known"
        faster = f"{own / speed:.2f}" if own else "not measured"
        losses = ", ".join(f"{loss:.3f}" for loss in found[0]["losses"][:2])
        lines.append(
            f"| {name} | {len(found)} | {speed:,.0f} | {memory / 2**20:,.0f} | {of_limit} "
            f"| {of_peak} | {faster} | {losses} |"
        )
    partly = [
        f"{name}: {failures[name]}." for name in results if results[name] and name in failures
    ]
    lines += [
        "",
        *partly,
        f"A useful token needs {each.flops / 1e9:,.1f} GFLOP: `needed_flops` of throughput.py.",
    ]
    if limits:
        rates = [limit * each.flops / 1e12 for limit in limits]
        lines.append(
            f"The rate of the products alone is measured: {statistics.median(rates):,.3g} TFLOP/s, "
            f"the median of {len(rates)} from {min(rates):,.3g} to {max(rates):,.3g}."
        )
    known = (
        f"{whole / 1e12:,.0f} TFLOP/s, dense, by its data sheet" if whole else "not in our table"
    )
    lines.append(f"The card's peak in bf16: {known}.")
    return lines
