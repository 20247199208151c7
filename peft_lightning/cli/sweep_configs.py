"""The configs of a sweep's points, as ``fit`` would have them: all are checked before one runs."""

from __future__ import annotations

from typing import Any

from peft_lightning.cli.config_index import CONFIG_OPTIONS, default_root, split_options
from peft_lightning.experiments.sweep.points import SEED, Settings, as_options
from peft_lightning.experiments.sweep.state import FINISHED, SweepState
from peft_lightning.experiments.sweep.values import plain_key
from peft_lightning.messages import UserError
from peft_lightning.process.progress import Progress

ROOT = "trainer.default_root_dir"


def sweep_folder(args: list[str], base: dict[str, Any], folder: str | None) -> str:
    """Return the folder of a sweep; ``--dir`` overrides the run's folder of a config file.

    Args:
        args: The options of ``fit``.
        base: The same with those of its config files, by dotted key.
        folder: Of ``--dir``.

    Raises:
        UserError: If the command line has the folder of a run.
    """
    if ROOT in [option.removeprefix("--") for option, _ in split_options(args)]:
        raise UserError(f"--{ROOT}: the folder of a sweep is given as --dir, its points are below")
    configs = [value for option, value in split_options(args) if option in CONFIG_OPTIONS]
    return str(folder or base.get(ROOT) or f"{default_root(configs)}-sweep")


def check_unvaried(args: list[str], asked: list[Settings]) -> None:
    """Raise UserError for an option of ``fit`` on the command line that a sweep sets itself."""
    for option, _ in split_options(args):
        key = plain_key(option.removeprefix("--"))
        if key == "ckpt_path":
            raise UserError(
                "--ckpt_path: the points of a sweep begin anew and go on by themselves; "
                "--model.init_from begins with an adapter"
            )
        if any(key in settings for settings in asked):
            what = "seeds" if key == SEED else "values to vary"
            raise UserError(f"{option} is given and so are {what} of it: leave one of them")


def point_configs(
    state: SweepState, args: list[str], compares_losses: bool = False, is_here: bool = True
) -> dict[str, dict[str, Any]]:
    """Return the config of each point that is to be trained, by name.

    Args:
        state: The sweep.
        args: The options of ``fit`` that do not vary.
        compares_losses: Whether each point must have validation rows.
        is_here: Whether this machine trains, whose devices the trainer is checked against.

    Raises:
        UserError: If ``fit`` would refuse one of them; names the point.
    """
    to_check = [point for point in state.asked_points() if point.status != FINISHED]
    if not to_check:
        return {}
    from peft_lightning.cli.fit_parts import fit_config

    configs = {}
    with Progress("checking", len(to_check), "points") as progress:
        for done, point in enumerate(to_check):
            progress.update(done)
            root = [f"--{ROOT}", str(state.path(point))]
            options = [*args, *as_options(point.settings), *root]
            try:
                configs[point.name] = fit_config(options, builds_trainer=is_here)
            except UserError as error:
                raise UserError(f"{point.name}: {error}") from error
            data = configs[point.name]["data"]
            is_bare = data.get("val", True) is None and data.get("val_fraction") == 0
            if compares_losses and is_bare:
                raise UserError(
                    f"{point.name}: --stop-early compares points by val/loss, but there is no "
                    "data.val and data.val_fraction is 0: give one of them"
                )
    return configs
