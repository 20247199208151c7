"""Packages for a machine without a network, as a folder of wheels: fetched here, unpacked there."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import zipfile
from pathlib import Path

# what the GPU check needs beyond torch, transformers, lightning, peft and pyarrow
NEEDED = ("pytest", "pluggy", "iniconfig", "packaging", "pygments")
MOST_BYTES = 64 * 2**20
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


def collect(folder: Path) -> list[str]:
    """Download the wheels of ``NEEDED`` into ``folder``; return their names.

    Raises:
        SystemExit: If they cannot be had, or take more than ``MOST_BYTES``.
    """
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    done = subprocess.run([*command, "--constraint", str(CONSTRAINTS), *NEEDED], check=False)
    if done.returncode:
        raise SystemExit(f"error: --collect-wheels {folder}: pip could not fetch them, see above")
    found = sorted(folder.glob("*.whl"))
    size = sum(file.stat().st_size for file in found)
    if size > MOST_BYTES:
        raise SystemExit(
            f"error: --collect-wheels {folder}: {size / 2**20:.0f} MiB of wheels, more than the "
            f"{MOST_BYTES // 2**20} that may travel: take out those that are not needed"
        )
    return [file.name for file in found]


def unpack(folder: Path, target: Path) -> list[str]:
    """Unpack the wheels of packages that are not installed; return their names.

    Args:
        folder: Of wheels.
        target: To be put on the path of modules.

    Raises:
        SystemExit: If there are none in ``folder``.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise SystemExit(
            f"error: --wheels {folder}: there are no wheels; --collect-wheels {folder} fetches "
            "them where there is a network"
        )
    taken = []
    for wheel in wheels:
        name = wheel.name.split("-")[0]
        if not _is_installed(name):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(target)
            taken.append(name)
    return taken


def module_path(*folders: Path) -> str:
    """Return the environment's ``PYTHONPATH`` with ``folders`` before what it has."""
    others = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    return os.pathsep.join([*map(str, folders), *others])


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
