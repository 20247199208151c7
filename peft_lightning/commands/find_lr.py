"""``python -m peft_lightning find-lr``: a range test of the learning rate of an adapter."""

from __future__ import annotations

import json as json_module
import tempfile
from pathlib import Path
from typing import Any


def find_lr(
    *fit: str,
    min_lr: float = 1e-6,
    max_lr: float = 1.0,
    steps: int = 100,
    out: str | None = None,
    json: bool = False,
) -> None:
    """Suggest a learning rate: train a fresh adapter at rates that grow with each step.

    Nothing of the test is kept but its curve, in find_lr.html. The suggestion is a third of the
    rate at which the smoothed loss is lowest: the order of magnitude to try.

    Args:
        fit: Options of fit, such as --config FILE.
        min_lr: The rate of the first step.
        max_lr: The rate of the last step.
        steps: Number of steps; the test ends earlier if the loss diverges.
        out: Folder of find_lr.html; without, that of the run.
        json: Print the result as JSON.
    """
    from peft_lightning.cli.config_index import configs_first
    from peft_lightning.cli.planned_fit import PlannedFit
    from peft_lightning.experiments.rate_test import check_range, run_rate_test
    from peft_lightning.files import (
        Kind,
        atomic_text,
        marked_file,
        require_output,
        user_cache,
    )

    check_range(min_lr, max_lr, steps)
    parent = user_cache("plan")
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        run = PlannedFit(configs_first(list(fit)), Path(folder))
        page = Path(out or run.root) / "find_lr.html"
        require_output(page, Kind("page", marked_file("<!-- report -->")), overwrite=True)
        found = run_rate_test(run.trainer, run.model, run.datamodule, min_lr, max_lr, steps)
    atomic_text(page, _page(found))
    if json:
        print(json_module.dumps({**_result(found), "page": str(page)}, indent=1))
        return
    print(_table(found))
    print(f"suggested: --model.learning_rate {found.suggestion:g}; the curve is in {page}")
    if found.warning:
        print(f"but {found.warning}")


def _result(found: Any) -> dict[str, Any]:
    return {
        "suggestion": found.suggestion,
        "at_minimum": found.at_minimum,
        "steepest": found.steepest,
        "has_diverged": found.has_diverged,
        "warning": found.warning,
        "rates": found.rates,
        "losses": found.losses,
        "smoothed": found.smoothed,
    }


def _table(found: Any) -> str:
    """Return about ten rows of the curve."""
    count = len(found.rates)
    picked = sorted({round(i * (count - 1) / 9) for i in range(10)})
    lines = ["      rate    loss  smoothed"]
    lines += [
        f"{found.rates[i]:>10.1e}  {found.losses[i]:>6.3f}  {found.smoothed[i]:>8.3f}"
        for i in picked
    ]
    return "\n".join(lines)


def _page(found: Any) -> str:
    from peft_lightning.reports.page import Page, callout, facts, figure
    from peft_lightning.reports.plots import Series, line_plot

    page = Page("Learning rate", "The loss while the learning rate grows with each step.")
    warning = [callout("warning", found.warning)] if found.warning else []
    told = [
        ("suggested", f"{found.suggestion:g}"),
        ("at the lowest smoothed loss", f"{found.at_minimum:.2g}"),
        ("at the steepest descent", f"{found.steepest:.2g}"),
        ("steps", len(found.rates)),
    ]
    curves = [
        Series("each step", found.rates, found.losses, kind="faint"),
        Series("smoothed", found.rates, found.smoothed),
        Series("suggested", [found.suggestion] * 2, [min(found.losses), max(found.losses)]),
    ]
    drawn = line_plot(curves, "learning rate", "loss in nats per token", log_x=True)
    note = (
        "A third of the rate at the lowest smoothed loss is suggested. One pass over growing rates "
        "tells the order of magnitude; a sweep over a few rates around it tells the best."
    )
    page.section("Range test", *warning, facts(told), figure(drawn), note=note)
    return page.html()
