"""``python -m peft_lightning plan``: what ``fit`` will need, before it is started."""

from __future__ import annotations

import json as json_module
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft_lightning.messages import RunError, UserError


def plan(
    *fit: str,
    fit_memory: str | None = None,
    gpu: str | None = None,
    steps: int | None = None,
    json: bool = False,
) -> None:
    """Show what fit will need, without training: rows, steps, disk, memory and time.

    Memory and time come from a few steps that are run here, in a temporary folder, or are computed
    for a GPU that is elsewhere. docs/plan.md says how.

    Args:
        fit: Options of fit, such as --config FILE.
        fit_memory: Memory that the run has to fit, such as 8GiB: shows what to change for that.
        gpu: A GPU to compute the plan for, such as h100, a100-80gb, rtx4090 or t4.
        steps: Batches to time; without, as many as a good mean needs.
        json: Print the plan as JSON.
    """
    from peft_lightning.experiments.plan.advice import parse_bytes
    from peft_lightning.experiments.plan.gpu import find_gpu

    if steps is not None and steps < 2:
        raise UserError(f"--steps must be at least 2, as the first batch warms up, got {steps}")
    limit = None if fit_memory is None else parse_bytes(fit_memory)
    named = None if gpu is None else find_gpu(gpu)
    planned = _planned(list(fit), named, steps)
    advice = None if limit is None else _advice(planned, limit, list(fit), steps)
    _show(planned.plan, advice, json)


def _planned(fit: list[str], gpu: Any, steps: int | None) -> Any:
    """Return the plan of a run."""
    from peft_lightning.cli.config_index import configs_first
    from peft_lightning.cli.planned_fit import PlannedFit
    from peft_lightning.experiments.plan.elsewhere import plan_on_gpu
    from peft_lightning.experiments.plan.measured_run import plan_here
    from peft_lightning.files import user_cache

    parent = user_cache("plan")
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as folder:  # not in memory, as /tmp may be
        run = PlannedFit(configs_first(fit), Path(folder), elsewhere=gpu is not None)
        parts = (run.trainer, run.model, run.datamodule)
        if gpu is None:
            return plan_here(*parts, run.processes, run.root, steps)
        given = {"gpu": gpu, "precision": run.precision}
        return plan_on_gpu(*parts, processes=run.processes, folder=run.root, **given)


def _advice(planned: Any, limit: int, fit: list[str], steps: int | None) -> Any:
    """Return what to change so that a run fits ``limit`` bytes."""
    from peft_lightning.experiments.plan.advice import advise
    from peft_lightning.experiments.plan.changes import changes_for, predictor

    truncation = getattr(getattr(planned.datamodule, "token_options", None), "truncation", "drop")
    changes = changes_for(planned, planned.plan.steps.accumulate, truncation)

    def check(variant: Any) -> Any:
        found = _measured_apart([*fit, *variant.options], steps)
        total = found["seconds"]["total"]
        return replace(variant, peak_bytes=found["peak_bytes"], seconds=total, is_measured=True)

    is_here = planned.measured is not None
    return advise(limit, changes, predictor(planned), check if is_here else None)


def _measured_apart(fit: list[str], steps: int | None) -> dict[str, Any]:
    """Return the plan of a run, measured by a process of its own: memory is that of a process."""
    timed = [] if steps is None else ["--steps", str(steps)]
    command = [sys.executable, "-m", "peft_lightning", "plan", *fit, *timed, "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise RunError(f"a plan with {' '.join(fit)} failed: {reason.removeprefix('error: ')}")
    found: dict[str, Any] = json_module.loads(done.stdout)
    return found


def _show(found: Any, advice: Any, as_json: bool) -> None:
    from peft_lightning.experiments.plan.text import advice_json, advice_text, plan_text

    if as_json:
        content = found.to_json()
        if advice is not None:
            content["fit_memory"] = advice_json(advice)
        print(json_module.dumps(content, indent=1))
        return
    print(plan_text(found))
    if advice is not None:
        print(advice_text(advice))
