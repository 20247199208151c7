"""``python -m peft_lightning sweep``: ``fit`` over values and seeds, each run in its own folder."""

from __future__ import annotations

import json as json_module
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from peft_lightning.cli.config_index import configs_first, split_options
from peft_lightning.cli.fit_options import check_fit_options, given_options
from peft_lightning.cli.sweep_configs import ROOT, check_unvaried, point_configs, sweep_folder
from peft_lightning.experiments.sweep.points import make_points, read_points, read_seeds
from peft_lightning.experiments.sweep.state import FAILED, FINISHED, LOCK, PointState, SweepState
from peft_lightning.experiments.sweep.table import as_json, ending, plan_text, sweep_table
from peft_lightning.experiments.sweep.values import read_vary
from peft_lightning.files import lock_folder
from peft_lightning.messages import UserError
from peft_lightning.process.resources import limit_threads
from peft_lightning.process.signals import STOP


def sweep(
    *fit: str,
    vary: list[str] | None = None,
    points: str | None = None,
    random: int | None = None,
    random_seed: int = 0,
    seeds: str | None = None,
    dir: str | None = None,
    jobs: int = 1,
    retries: int = 1,
    stop_early: bool = False,
    first_rung: int = 1,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Train one config over given values, each run in its own folder; again, it goes on.

    The exit status is 0 if all points are finished or stopped early, 1 if one has failed.

    Args:
        fit: Options of fit, such as --config FILE.
        vary: KEY=VALUE,VALUE, several times for a product; KEY,KEY=VALUE:VALUE,... for options that
            go together; KEY=log:LOW..HIGH, uniform: or int: for --random.
        points: YAML file with a list of mappings of options to values.
        random: Number of random combinations instead of all.
        random_seed: Seed of the random combinations.
        seeds: Seeds of each point, such as 0,1,2 or 0-4.
        dir: Folder of the sweep; without, that of the config or runs/<config>-sweep.
        jobs: Points that train at the same time; they share the processor's cores.
        retries: How often a point that has failed is started again.
        stop_early: Stop the worse half of the points, by val/loss, after each rung.
        first_rung: Validations until the first rung; each further one is after twice as many.
        dry_run: Print the points instead of training.
        json: Print the points and results as JSON.
    """
    args = configs_first(list(fit))
    check_fit_options("sweep", args, sweep.__kwdefaults__ or {})
    least = {"jobs": (jobs, 1), "retries": (retries, 0), "first_rung": (first_rung, 1)}
    for name, (number, low) in least.items():
        if number < low:
            raise UserError(f"--{name} must be at least {low}, got {number}")
    asked = make_points(
        [read_vary(text) for text in vary or []],
        read_points(Path(points)) if points else [],
        read_seeds(seeds) if seeds is not None else [],
        random,
        random_seed,
    )
    base = given_options(args)
    folder = Path(sweep_folder(args, base, dir)).expanduser()
    check_unvaried(args, asked)
    base.pop(ROOT, None)
    if dry_run:
        state = SweepState.open(folder, base, asked)
        point_configs(state, args, stop_early)
        print(json_module.dumps(as_json(state), indent=1) if json else plan_text(state, jobs))
        return
    say = partial(print, file=sys.stderr, flush=True)
    lock = lock_folder(folder, LOCK, say)
    if isinstance(lock, str):
        raise UserError(
            f"another sweep runs in {folder}, {lock}: wait for it, or give another --dir"
        )
    with lock:
        state = SweepState.open(folder, base, asked)
        for name, config in point_configs(state, args, stop_early).items():
            state.write_config(state.points[name], config)
        state.save()
        rung = first_rung if stop_early else None
        _train(state, _adapter_classes(args), jobs, retries, rung, say)
        print(json_module.dumps(as_json(state), indent=1) if json else sweep_table(state))
        if not json:
            print(ending(state), flush=True)
        STOP.release()
    if any(point.status == FAILED for point in state.asked_points()):
        raise SystemExit(1)


def _adapter_classes(args: list[str]) -> list[str]:
    return [f"{o}={value}" for o, value in split_options(args) if o == "--adapter_class"]


def _train(
    state: SweepState,
    extra: list[str],
    jobs: int,
    retries: int,
    first_rung: int | None,
    say: Any,
) -> None:
    """Train the points; a stop signal ends what runs, and is held until the caller releases it."""
    from peft_lightning.experiments.sweep.halving import Halving
    from peft_lightning.experiments.sweep.runner import SweepRunner

    if jobs > 1:
        limit_threads(jobs)
    STOP.kept = lambda: _kept(state.asked_points(), state.folder)
    STOP.hold("the running points save and end")
    runner = SweepRunner(state, extra, jobs=jobs, retries=retries, env=os.environ, say=say)
    if first_rung is None:
        runner.run(state.asked_points())
    else:
        Halving(state, runner, first_rung, say).run()


def _kept(points: list[PointState], folder: Path) -> str:
    finished = sum(point.status == FINISHED for point in points)
    counts = f"{finished} of {len(points)} points"
    return f" after {counts}, which are in {folder}; the same command goes on"
