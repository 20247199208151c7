"""What ``fit`` would refuse, found before its job is queued."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from peft_lightning.messages import UserError


def check_fit(args: list[str]) -> list[Path]:
    """Parse and build what ``fit`` builds before it loads anything.

    Args:
        args: The options of ``fit``.

    Returns:
        The data files that it would read.

    Raises:
        UserError: If ``fit`` would refuse an option, a data file or the base model.
    """
    from peft_lightning.base_model.resolve import locate
    from peft_lightning.cli.adapter_classes import take_adapter_classes
    from peft_lightning.cli.fit_parts import fit_parts

    _, args = take_adapter_classes(args)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*`srun` command is available")  # nothing runs here
        module, data = fit_parts(args)
    name = str(getattr(module, "base_model_name", "") or "")
    if name and not _is_hub_id(name):  # the hub may be out of reach here or there
        locate(name, None)
    return _files_of(data)


def _is_hub_id(name: str) -> bool:
    is_path = Path(name).expanduser().exists() or name.endswith(".gguf")
    return not is_path and re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) is not None


def _files_of(data: Any) -> list[Path]:
    """Return the files of the training and validation rows; all of them must be there."""
    from peft_lightning.data.datamodule import SFTDataModule
    from peft_lightning.data.split import find_sources

    if not isinstance(data, SFTDataModule):
        return []
    files = []
    for name in ("train", "val"):
        if data.paths[name] is not None:
            given = find_sources(data.paths[name], f"data.{name}", data.row_options.encoding)
            files += [file.path for source in given.sources.values() for file in source.files]
    return files


def check_partition(
    shown: list[list[str]], partition: str | None, nodes: int, processes: int, cpus: int | None
) -> None:
    """Check that a partition has what a job asks for.

    Args:
        shown: Rows of ``sinfo``: partition, with a * behind the default one; nodes; CPUs of each,
            with a + where they differ.
        partition: Of the job; None for the default.
        nodes: Of the job.
        processes: On each node.
        cpus: Of each process.

    Raises:
        UserError: If it has fewer nodes, or nodes with fewer CPUs; or there is none of that name.
    """
    found = [row for row in shown if len(row) == 3]
    if not found:
        return
    if partition is not None and "," not in partition:
        names = [row[0].rstrip("*") for row in found]
        if partition not in names:
            raise UserError(f"--partition {partition}: there are {', '.join(sorted(set(names)))}")
        found = [row for row in found if row[0].rstrip("*") == partition]
    elif partition is None:
        found = [row for row in found if row[0].endswith("*")] or found
    most = max(int(row[1]) for row in found)
    name = found[0][0].rstrip("*")
    if nodes > most:
        raise UserError(f"--nodes {nodes}, but the partition {name} has {most}")
    most = max(int(row[2].rstrip("+")) for row in found if row[2].rstrip("+").isdigit())
    if all(not row[2].endswith("+") for row in found) and processes * (cpus or 1) > most:
        raise UserError(
            f"{processes} processes of {cpus or 1} CPUs on each node are {processes * (cpus or 1)}"
            f" CPUs, but a node of the partition {name} has {most}: give fewer trainer.devices or "
            "--cpus"
        )
