"""TrackioLogger: a run's metrics in Trackio, a dashboard of one's own without an account."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.logger import _convert_params
from lightning.fabric.utilities.rank_zero import rank_zero_info
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from peft_lightning.messages import UserError


class TrackioLogger(Logger):
    """Writes to Trackio's database in the run's folder; ``trackio show`` is its dashboard.

    Args:
        project: Runs of one project are shown together.
        name: Of the run; without, the name of the run's folder.
        save_dir: Folder of the database; without, ``trackio`` in the run's folder, or TRACKIO_DIR.
            Trackio has one for all runs of a process: the first counts.
        **options: Further ones of ``trackio.init``, such as ``space_id`` for a dashboard on the
            hub.
    """

    def __init__(
        self,
        project: str = "peft_lightning",
        name: str | None = None,
        save_dir: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self._project, self._name, self._save_dir, self._options = project, name, save_dir, options
        self._run: Any = None
        self.default_folder = "."  # the run's, set by our Trainer

    @property
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    def version(self) -> str:
        """The name of the run."""
        return self._name or Path(self.default_folder).resolve().name

    @property
    def save_dir(self) -> str:
        """The folder of the database."""
        own = self._save_dir or os.environ.get("TRACKIO_DIR")
        return own or str(Path(self.default_folder).resolve() / "trackio")

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run of Trackio, which begins when it is first asked for."""
        if self._run is None:
            folder, was_imported = self.save_dir, "trackio" in sys.modules
            os.environ["TRACKIO_DIR"] = folder  # read when trackio is imported
            try:
                import trackio  # type: ignore[import-not-found]
            except ModuleNotFoundError as error:
                raise UserError("TrackioLogger needs trackio: pip install trackio") from error
            if was_imported and str(trackio.TRACKIO_DIR) != folder:
                rank_zero_info(f"Trackio writes to {trackio.TRACKIO_DIR}, not to {folder}")
            options = {"embed": False, **self._options}
            self._run = trackio.init(project=self._project, name=self.version, **options)
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Put nested values into the run's configuration."""
        self.experiment.config.update(_convert_params(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write metrics at a step."""
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is still waiting."""
        if self._run is not None:
            self._run.finish()
            self._run = None
