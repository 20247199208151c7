"""Disturbs commands at random moments and starts them again: the result must be an undisturbed one.

Usage: python scripts/storm.py --minutes N [--seed S] [--only OPERATION[/KIND]] [--again TRY]

Each try takes an operation and a kind of disturbance, disturbs up to three runs of the command, and
then leaves one alone. What it leaves must be equal in every byte to what an undisturbed run left.
Prints a table (operation x kind: tries, held), and each violation with the command that repeats it.
The exit status is 1 if there was a violation. Full and read-only disks need root, to mount a tmpfs.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/drivers")]

from storming.disturbances import KINDS, MOUNTED, disturbed, mounted  # noqa: E402
from storming.operations import OPERATIONS, Operation, finish, prepare  # noqa: E402

MOST_DISTURBANCES = 3  # of a try


def main(args: list[str] | None = None) -> int:
    """Run the storm; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0, help="how long to go on")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the whole storm")
    parser.add_argument("--only", default="", help="OPERATION, or OPERATION/KIND")
    parser.add_argument("--again", type=int, help="repeat the try of this seed alone")
    given = parser.parse_args(args)
    operation, _, kind = given.only.partition("/")
    operations = {n: o for n, o in OPERATIONS.items() if operation in ("", n)}
    can_mount = os.geteuid() == 0 and shutil.which("mount") is not None
    kinds = [k for k in KINDS if kind in ("", k) and (can_mount or k not in MOUNTED)]
    if not operations or not kinds:
        parser.error(
            f"--only {given.only}: there are {', '.join(OPERATIONS)} and {', '.join(KINDS)}"
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by the way of what is removed
    place = Path(tempfile.mkdtemp(prefix="storm-"))
    try:
        return storm(place, operations, kinds, given)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def storm(
    place: Path, operations: dict[str, Operation], kinds: list[str], given: argparse.Namespace
) -> int:
    """Try until the time is over; print the table; return the exit status."""
    print(f"seed {given.seed}; kinds: {', '.join(kinds)}", flush=True)
    prepare(place / "start")
    expected, seconds = {}, {}
    for name, operation in operations.items():
        if given.again is None or chosen(given.again, operations, kinds)[0] == name:
            expected[name], seconds[name] = undisturbed(place, operation)
            print(f"undisturbed {name}: {seconds[name]:.1f} s", flush=True)
    tries: Counter[tuple[str, str]] = Counter()
    held: Counter[tuple[str, str]] = Counter()
    violations = []
    seeds = random.Random(given.seed)
    end = time.monotonic() + given.minutes * 60
    while time.monotonic() < end:
        seed = seeds.randrange(2**31) if given.again is None else given.again
        name, kind = chosen(seed, operations, kinds)
        faults = one_try(place, operations[name], kind, seed, seconds[name], expected[name])
        tries[name, kind] += 1
        held[name, kind] += not faults
        for fault in faults:
            only = f" --only {given.only}" * bool(given.only)
            violations.append(f"{name}, {kind}: {fault}; storm.py --again {seed}{only}")
            print(f"VIOLATION {violations[-1]}", flush=True)
        if given.again is not None:
            break
    print(table(tries, held, list(operations), kinds))
    print(f"{sum(tries.values())} tries, {sum(held.values())} held, {len(violations)} violations")
    print("\n".join(violations))
    return int(bool(violations))


def chosen(seed: int, operations: dict[str, Operation], kinds: list[str]) -> tuple[str, str]:
    """Return the operation and the kind of a try."""
    draw = random.Random(seed)
    return draw.choice(sorted(operations)), draw.choice(kinds)


def undisturbed(place: Path, operation: Operation) -> tuple[dict[str, str], float]:
    """Return what an operation leaves when nothing happens, and its seconds."""
    folder = place / "undisturbed"
    shutil.copytree(place / "start", folder, symlinks=True)
    started = time.monotonic()
    said = finish(operation, folder)
    found, took = operation.result(folder), time.monotonic() - started
    shutil.rmtree(folder)
    if said or not found:
        raise SystemExit(f"undisturbed, {operation.name} does not end well: {said or 'no result'}")
    return found, took


def one_try(
    place: Path,
    operation: Operation,
    kind: str,
    seed: int,
    seconds: float,
    expected: dict[str, str],
) -> list[str]:
    """Disturb an operation, then let it finish; return what is wrong with how that went."""
    draw = random.Random(f"{seed} moments")
    folder = place / "try"
    faults: list[str] = []
    with mounted(folder, kind in MOUNTED):
        shutil.copytree(place / "start", folder, dirs_exist_ok=True, symlinks=True)
        for number in range(draw.randint(1, MOST_DISTURBANCES)):
            said = disturbed(operation, folder, kind, draw, seconds, is_first=number == 0)
            faults += [f"run {number + 1}: {text}" for text in said]
        faults += finish(operation, folder)
        found = operation.result(folder)
        if not faults and found != expected:
            differing = [n for n in {**expected, **found} if expected.get(n) != found.get(n)]
            faults.append(f"other content in {', '.join(sorted(differing))}")
        left = [str(p.relative_to(folder)) for p in folder.rglob("*.tmp")]
        if not faults and left:
            faults.append(f"left over: {', '.join(left[:3])}")
    subprocess.run(["rm", "-rf", str(folder)], check=False)
    return faults


def table(
    tries: Counter[tuple[str, str]],
    held: Counter[tuple[str, str]],
    operations: list[str],
    kinds: list[str],
) -> str:
    """Return held/tries of each operation and kind."""
    width = max(map(len, operations)) + 1
    lines = ["".ljust(width) + "".join(k.rjust(max(len(k), 7) + 2) for k in kinds)]
    for name in operations:
        cells = [f"{held[name, k]}/{tries[name, k]}".rjust(max(len(k), 7) + 2) for k in kinds]
        lines.append(name.ljust(width) + "".join(cells))
    return "\n".join([*lines, "(held/tries)"])


if __name__ == "__main__":
    sys.exit(main())
