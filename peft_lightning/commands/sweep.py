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
from peft_lightning.cli.sweep_job import Job, submit_points
from peft_lightning.experiments.sweep.points import make_points, read_points, read_seeds
from peft_lightning.experiments.sweep.slurm import require_none_queued, settle_queued
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
    jobs: int | None = None,
    retries: int | None = None,
    stop_early: bool = False,
    first_rung: int = 1,
    dry_run: bool = False,
    json: bool = False,
    slurm: bool = False,
    nodes: int | None = None,
    gpus: int | None = None,
    cpus: int | None = None,
    mem: str | None = None,
    time: str | None = None,
    partition: str | None = None,
    account: str | None = None,
    qos: str | None = None,
    job_name: str | None = None,
    sbatch: list[str] | None = None,
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
        jobs: Points that train at the same time and share the cores; 1 here, all with --slurm.
        retries: How often a point that has failed is started again; without, once.
        stop_early: Stop the worse half of the points, by val/loss, after each rung.
        first_rung: Validations until the first rung; each further one is after twice as many.
        dry_run: Print the points instead of training.
        json: Print the points and results as JSON.
        slurm: Submit the points as an array of SLURM jobs; again, it shows how far they are.
        nodes: Number of nodes of a point; without, trainer.num_nodes, or 1.
        gpus: GPUs of each node, with one process each; without GPUs, trainer.devices processes.
        cpus: CPUs of each process.
        mem: Memory of each node, such as 64G.
        time: Time limit of a point, such as 8:00:00.
        partition: Partition to queue in.
        account: Account to charge.
        qos: Quality of service.
        job_name: Name of the job; without, that of the sweep's folder.
        sbatch: Any other option of sbatch, such as --sbatch=--exclusive.
    """
    args = configs_first(list(fit))
    check_fit_options("sweep", args, sweep.__kwdefaults__ or {})
    numbers = [("jobs", 1, jobs), ("retries", 0, retries), ("first_rung", 1, first_rung)]
    if wrong := [number for number in numbers if number[2] is not None and number[2] < number[1]]:
        raise UserError("--{} must be at least {}, got {}".format(*wrong[0]))
    flags = {"cpus-per-task": cpus, "mem": mem, "time": time, "partition": partition}
    flags |= {"account": account, "qos": qos}
    job = Job(nodes, gpus, job_name, flags, sbatch or [], jobs) if slurm else None
    given = {**flags, "nodes": nodes, "gpus": gpus, "job_name": job_name, "sbatch": sbatch}
    _check_slurm(slurm, stop_early, retries, given)
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
        settle_queued(state)
        point_configs(state, args, stop_early, is_here=not slurm)
        print(json_module.dumps(as_json(state), indent=1) if json else plan_text(state, jobs or 1))
        return
    say = partial(print, file=sys.stderr, flush=True)
    lock = lock_folder(folder, LOCK, say)
    if isinstance(lock, str):
        raise UserError(
            f"another sweep runs in {folder}, {lock}: wait for it, or give another --dir"
        )
    with lock:
        state = SweepState.open(folder, base, asked)
        settle_queued(state)
        state.write_configs(point_configs(state, args, stop_early, is_here=not slurm))
        STOP.kept = lambda: _kept(state.asked_points(), state.folder)
        STOP.hold("the running points save and end")
        try:
            if job is not None:
                submit_points(state, job, _adapter_classes(args), say)
            else:
                rung = first_rung if stop_early else None
                _train(state, _adapter_classes(args), jobs or 1, retries, rung, say)
            print(json_module.dumps(as_json(state), indent=1) if json else sweep_table(state))
            if not json:
                print(ending(state), flush=True)
        finally:
            STOP.release(check=False)
        STOP.check()
    if any(point.status == FAILED for point in state.asked_points()):
        raise SystemExit(1)


def _check_slurm(slurm: bool, stop_early: bool, retries: int | None, given: dict[str, Any]) -> None:
    if slurm and retries is not None:
        raise UserError("--retries is for this machine: with --slurm, the same command tries again")
    if slurm and stop_early:
        raise UserError(
            "--stop-early compares points as they train on this machine; with --slurm each is a "
            "job of its own: leave one of them out"
        )
    if not slurm and (names := [name for name, value in given.items() if value is not None]):
        raise UserError(f"--{names[0].removesuffix('-per-task')} is for --slurm: give that too")


def _adapter_classes(args: list[str]) -> list[str]:
    return [f"{o}={value}" for o, value in split_options(args) if o == "--adapter_class"]


def _train(
    state: SweepState,
    extra: list[str],
    jobs: int,
    retries: int | None,
    first_rung: int | None,
    say: Any,
) -> None:
    """Train the points; a stop signal, which the caller holds, ends what runs."""
    from peft_lightning.experiments.sweep.halving import Halving
    from peft_lightning.experiments.sweep.runner import SweepRunner

    require_none_queued(state.asked_points())
    if jobs > 1:
        limit_threads(jobs)
    again = 1 if retries is None else retries
    runner = SweepRunner(state, extra, jobs=jobs, retries=again, env=os.environ, say=say)
    if first_rung is None:
        runner.run(state.asked_points())
    else:
        Halving(state, runner, first_rung, say).run()


def _kept(points: list[PointState], folder: Path) -> str:
    finished = sum(point.status == FINISHED for point in points)
    counts = f"{finished} of {len(points)} points"
    return f" after {counts}, which are in {folder}; the same command goes on"
