"""Kill -9 anywhere, resume: every bit is that of the run that was not disturbed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

SETUPS = {
    "plain": {},
    "accumulation": {"trainer": {"accumulate_grad_batches": 4}},
    "token budget": {"data": {"tokens_per_batch": 160, "batch_size": 1}},
    "workers": {"data": {"num_workers": 2}},
    "rare saves": {"every": 4},
    "prompt tuning": {"prompt": True},
    "padded": {"data": {"layout": "padded"}},
    "validation within the epoch": {"trainer": {"val_check_interval": 2}},
    "sixteen bits": {"trainer": {"precision": "bf16-mixed"}},
}
KILLS = {  # 24 rows, 1 held out: 6 batches an epoch, 2 epochs
    "plain": [{"batch": b} for b in range(0, 12)] + [{"save": s} for s in (1, 2, 5, 7, 8)],
    "accumulation": [{"batch": b} for b in (0, 2, 3, 4, 5, 6, 8, 10)],
    "token budget": [{"batch": b} for b in (2, 7, 12)],
    "workers": [{"batch": b} for b in (2, 5, 8)],
    "rare saves": [{"batch": b} for b in (1, 6, 9)] + [{"save": 2}],
    "prompt tuning": [{"batch": b} for b in (2, 5, 8)],
    "padded": [{"batch": b} for b in (3, 7)],
    "validation within the epoch": [{"batch": b} for b in (1, 2, 5, 8)] + [{"save": 3}],
    "sixteen bits": [{"batch": 7}],
}


def drive(base: Path, rows: Path, folder: Path, scenarios: list[dict]) -> dict[str, int]:
    out = subprocess.run(
        [sys.executable, HERE / "resume_driver.py", base, rows, folder],
        input=json.dumps(scenarios),
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
        env={
            "PATH": "/usr/bin:/bin",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{HERE}:{HERE.parent}",
        },
    )
    return {(row := json.loads(line))["name"]: row["status"] for line in out.stdout.splitlines()}


def trace(folder: Path) -> dict[int, dict]:
    """Return what each batch computed; a batch computed again after a resume must agree."""
    seen: dict[int, dict] = {}
    for line in (folder / "trace.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert seen.setdefault(row["batch"], row) == row
    return seen


@pytest.mark.parametrize("setup", SETUPS)
def test_a_killed_run_continues_bit_for_bit(setup, base, rows, tmp_path):
    options, kills = SETUPS[setup], KILLS[setup]
    scenarios = [{"name": "whole", **options}]
    for i, kill in enumerate(kills):
        scenarios.append({"name": f"killed{i}", **options, "kill": kill})
        scenarios.append({"name": f"killed{i}", **options, "ckpt_path": "last"})
    drive(base, rows, tmp_path, [s for s in scenarios if "ckpt_path" not in s])
    status = drive(base, rows, tmp_path, [s for s in scenarios if "ckpt_path" in s])
    whole, final = trace(tmp_path / "whole"), (tmp_path / "whole/final.json").read_text()
    assert len(whole) > 10
    for i, kill in enumerate(kills):
        folder = tmp_path / f"killed{i}"
        log = (folder / "log.txt").read_text()
        assert status[f"killed{i}"] == 0, f"{kill}: {log}"
        assert trace(folder) == whole, kill
        assert (folder / "final.json").read_text() == final, kill
