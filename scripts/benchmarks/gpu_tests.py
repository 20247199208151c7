"""Runs the tests that need a GPU, file by file in processes of their own, within a time."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
AT_ONCE = 4  # processes: a GPU has room for tests of tiny models side by side
LINE = re.compile(
    r"^(tests/\S+\.py::.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b(?: \((.*)\))?"
)
REASON = re.compile(r"^(?:FAILED|ERROR) (tests/\S+\.py.*?) - (.*)$")


@dataclass
class Tests:
    """What became of the tests.

    Args:
        outcomes: PASSED, FAILED, ERROR, SKIPPED or XFAIL, by test.
        reasons: Why one failed or was skipped.
        problems: Of whole files: stopped by the time, or ended by a signal.
        seconds: That all of it took.
    """

    outcomes: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def counts(self) -> Counter[str]:
        """Return how many tests there are of each outcome."""
        return Counter(self.outcomes.values())

    def failed(self) -> list[str]:
        """Return the tests that failed."""
        return [name for name, how in self.outcomes.items() if how in ("FAILED", "ERROR", "XPASS")]


def files_with_gpu_tests(folder: Path = ROOT / "tests") -> list[Path]:
    """Return the files that have tests marked ``gpu``, by hand or by ``tests/devices.py``."""
    marks = re.compile(
        r"^\s*@pytest\.mark\.gpu\b|^from devices import .*|^@on_every_device\b", re.M
    )
    return [file for file in sorted(folder.rglob("test_*.py")) if marks.search(file.read_text())]


def run_tests(
    device: str, deadline: float, environment: dict[str, str], select: str | None = None
) -> Tests:
    """Run the tests marked ``gpu``, or on a CPU the same tests' CPU halves.

    On a GPU files are apart, since an error there spoils all that its process does afterwards.

    Args:
        device: cuda or cpu.
        deadline: By ``time.monotonic()``; what still runs then is stopped.
        environment: Of the processes, with the project and pytest on the path.
        select: pytest's ``-k``.
    """
    found, started = Tests(), time.monotonic()
    files = files_with_gpu_tests()
    waiting = [[file] for file in files] if device == "cuda" else [files]
    options = ["-vv", "--tb=short", "-p", "no:cacheprovider", "--show-capture=no"]
    options += ["-m", "gpu" if device == "cuda" else "not gpu"]
    options += ["-k", select] if select else []
    running: list[tuple[str, Any, Path]] = []
    with tempfile.TemporaryDirectory() as folder:
        while (waiting or running) and time.monotonic() < deadline:
            while waiting and len(running) < AT_ONCE:
                names = [str(file.relative_to(ROOT)) for file in waiting.pop(0)]
                said = Path(folder, f"{len(waiting)}.txt")
                with said.open("w") as out:
                    process = subprocess.Popen(
                        [sys.executable, "-m", "pytest", *options, *names],
                        cwd=ROOT,
                        env=environment | {"COLUMNS": "1000"},  # a reason is not cut
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                running.append((", ".join(names), process, said))
            time.sleep(0.2)
            for entry in [entry for entry in running if entry[1].poll() is not None]:
                running.remove(entry)
                _read(found, *entry)
        for name, process, said in running:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            _read(found, name, process, said)
        for files in waiting:
            found.problems += [f"{file.relative_to(ROOT)}: no time left" for file in files]
    if not found.counts()["PASSED"] and not found.failed() and not found.problems:
        found.problems.append("no test ran")
    found.seconds = time.monotonic() - started
    return found


def _read(found: Tests, name: str, process: Any, said: Path) -> None:
    """Take what a process of pytest printed."""
    lines = said.read_text(errors="replace").splitlines()
    before = len(found.failed())
    for line in lines:
        if match := LINE.match(line):
            found.outcomes[match[1]] = match[2]
            if match[3]:
                found.reasons[match[1]] = match[3]
        elif match := REASON.match(line):
            found.outcomes.setdefault(match[1], "ERROR")
            found.reasons[match[1]] = match[2]
    status = process.returncode
    if status == -signal.SIGKILL:
        found.problems.append(f"{name}: stopped, its time was over")
    elif status == 2 and len(found.failed()) > before:
        return  # a file that cannot be imported: that is said as its error
    elif status not in (0, 1, 5):  # passed, failed, nothing of it selected
        last = next((line for line in reversed(lines) if line.strip()), "")
        found.problems.append(f"{name}: pytest ended with status {status}: {last[:200]}")
