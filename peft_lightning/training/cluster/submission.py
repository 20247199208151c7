"""What a job was submitted as: copies of its configs, a list of its data and code, its number.

It is in the run's folder, in ``submission/``: the job trains by the copies, also when it starts
again, whatever becomes of the files that were given.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

import yaml

import peft_lightning
from peft_lightning.files import atomic_text, lock_folder, sha256_of_file, sha256_of_json
from peft_lightning.messages import UserError, shortened, without_secrets
from peft_lightning.process import slurm

FOLDER = "submission"
FACTS = "submission.json"
LOCK = "submit.lock"
WAITS = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "STOPPED")


def copied_configs(configs: list[Path], folder: Path) -> list[str]:
    """Copy config files, with the files that they name in place of their sections.

    Args:
        configs: YAML files, in the order in which ``fit`` reads them.
        folder: Of the run.

    Returns:
        What has to be said: a copy holds a secret.
    """
    said = []
    for i, path in enumerate(configs):
        copy = folder / FOLDER / copy_name(i, len(configs))
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = _whole(path)
        removed: list[str] = []
        without_secrets(yaml.safe_load(text), removed)
        atomic_text(copy, text)
        if removed:
            copy.chmod(0o600)
            said.append(f"{copy} is for your eyes alone: it holds {', '.join(removed)}")
    return said


def copy_name(index: int, count: int) -> str:
    """Return the name of the copy of a config file, one of ``count``."""
    return "config.yaml" if count == 1 else f"config-{index}.yaml"


def _whole(path: Path) -> str:
    """Return a config file's text; with the files that its sections name written out."""
    text = path.read_text(encoding="utf-8")
    content = yaml.safe_load(text)

    def inlined(value: Any, folder: Path, within: bool) -> Any:
        if isinstance(value, dict):
            return {k: inlined(v, folder, within or k in SECTIONS) for k, v in value.items()}
        if isinstance(value, list):
            return [inlined(v, folder, within) for v in value]
        is_name = within and isinstance(value, str) and value.endswith((".yaml", ".yml"))
        if is_name and (folder / value).is_file():
            inner = yaml.safe_load((folder / value).read_text(encoding="utf-8"))
            return inlined(inner, (folder / value).parent, within)
        return value

    whole = inlined(content, path.parent, False)
    return text if whole == content else yaml.safe_dump(whole, sort_keys=False)


SECTIONS = ("model", "data", "trainer")


def note_contents(folder: Path, files: Iterable[Path]) -> None:
    """Write which data files a run was submitted with, and which code.

    Args:
        folder: Of the run.
        files: The data files.
    """
    data = {str(file.resolve()): _data_file(file) for file in files}
    facts = {"data": data, "code": code_version()}
    atomic_text(folder / FOLDER / FACTS, json.dumps(facts, indent=1) + "\n")


def _data_file(file: Path) -> dict[str, Any]:
    status = file.stat()
    times = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
    return {**times, "sha256": sha256_of_file(file)}


def code_version() -> dict[str, str]:
    """Return hashes of this package's sources, and of each loaded module of the user's."""
    package = Path(peft_lightning.__file__).parent
    sources = {str(f.relative_to(package)): sha256_of_file(f) for f in package.rglob("*.py")}
    own = [Path(str(m.__file__)) for m in list(sys.modules.values()) if getattr(m, "__file__", "")]
    here = Path.cwd()
    return {f"peft_lightning {peft_lightning.__version__}": sha256_of_json(sources)} | {
        str(file): sha256_of_file(file)
        for file in own
        if file.suffix == ".py" and file.is_relative_to(here) and _is_users(file, package)
    }


def _is_users(file: Path, package: Path) -> bool:
    is_installed = {"site-packages", "dist-packages"} & set(file.parts)
    return not is_installed and not file.is_relative_to(package) and file.is_file()


def changes_since(folder: Path) -> list[str]:
    """Return what is another than when the run was submitted, in lines for its user."""
    facts = _facts(folder)
    changed = [name for name, known in facts.get("data", {}).items() if not _is_same(name, known)]
    lines = []
    if changed:
        lines.append(f"changed since the job was submitted, data: {shortened(changed)}")
    now = code_version()
    code = facts.get("code", {})
    if other := [name for name, known in code.items() if _version_of(name, now) != known]:
        lines.append(f"changed since the job was submitted, code: {shortened(other)}")
    return lines


def _version_of(name: str, now: dict[str, str]) -> str | None:
    if name in now or not name.endswith(".py"):
        return now.get(name)
    return sha256_of_file(Path(name)) if Path(name).is_file() else None


def _is_same(name: str, known: dict[str, Any]) -> bool:
    try:
        status = Path(name).stat()
        if (status.st_size, status.st_mtime_ns) == (known["size"], known["mtime_ns"]):
            return True
        return status.st_size == known["size"] and sha256_of_file(Path(name)) == known["sha256"]
    except OSError:
        return False


# ---- one job a folder ----------------------------------------------------------------------------


def reserve(folders: Iterable[Path], held: ExitStack) -> None:
    """Take the folders of runs for a submission that is under way.

    Args:
        folders: Of the runs.
        held: Is given the locks, which last until the job's number is noted.

    Raises:
        UserError: If another submission has one of them, and its job has not ended.
    """
    for folder in folders:
        try:
            found: IO[str] | str = lock_folder(folder / FOLDER, LOCK, lambda line: None)
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error.strerror}") from error
        if isinstance(found, str):
            raise UserError(f"{folder} is being submitted at this moment, by {found}")
        held.callback(found.close)
        job = _facts(folder, "job.json").get("job")
        if job is not None and (state := _state(str(job))):
            raise UserError(
                f"{folder} is that of job {job}, which is {state}: scancel {job} first, or give "
                "another --trainer.default_root_dir"
            )


def note_job(folders: Iterable[tuple[Path, str]]) -> None:
    """Write the job of each folder, as ``scontrol`` takes it."""
    for folder, job in folders:
        atomic_text(folder / FOLDER / "job.json", json.dumps({"job": job}) + "\n")


def _state(job: str) -> str | None:
    """Return the state of a job that has not ended; None if it has, or SLURM knows it no more."""
    with suppress(OSError, subprocess.SubprocessError):
        found = slurm.state_of(job)
        return found if found in WAITS else None
    return None


def _facts(folder: Path, name: str = FACTS) -> dict[str, Any]:
    with suppress(OSError, ValueError, TypeError):
        return dict(json.loads((folder / FOLDER / name).read_text(encoding="utf-8")))
    return {}
