"""Kill -9 anywhere, resume: every bit is that of the run that was not disturbed."""

import json
import os
import random
from collections import Counter
from pathlib import Path

import pytest

import warm_python

HERE = Path(__file__).parents[1]

SETUPS = {
    "plain": {},
    "accumulation": {"trainer": {"accumulate_grad_batches": 4}},
    "token budget": {"data": {"tokens_per_batch": 160, "batch_size": 1}},
    "workers": {"data": {"num_workers": 2}},
    "rare saves": {"every": 4},
    "prompt tuning": {"prompt": True},
    "dora": {"lora": {"use_dora": True, "init_lora_weights": "pissa_niter_1"}},
    "padded": {"data": {"layout": "padded"}},
    "weights": {
        "data": {"format": "weighted_rows.row"},
        "trainer": {"accumulate_grad_batches": 2},
    },
    "validation within the epoch": {"trainer": {"val_check_interval": 2}},
    "sixteen bits": {"trainer": {"precision": "bf16-mixed"}},
}
KILLS = {  # 24 rows, 1 held out: 6 batches an epoch, 2 epochs
    "plain": [{"batch": 0}, {"save": 1}, {"save": 2}]
    + [{"batch": b} for b in range(1, 12)]
    + [{"save": 1}],
    "accumulation": [{"batch": b} for b in (0, 2, 3, 4, 5, 6, 8, 10)],
    "token budget": [{"batch": b} for b in (2, 7, 12)],
    "workers": [{"batch": b} for b in (2, 5, 8)],
    "rare saves": [{"batch": b} for b in (1, 6, 9)] + [{"save": 2}],
    "prompt tuning": [{"batch": b} for b in (2, 5, 8)],
    "dora": [{"batch": 5}],
    "padded": [{"batch": b} for b in (3, 7)],
    "weights": [{"batch": b} for b in (3, 8)],
    "validation within the epoch": [{"batch": b} for b in (1, 2, 5, 8)] + [{"save": 3}],
    "sixteen bits": [{"batch": 7}],
}
# calls and returns of functions in one step, save, validation or end of an epoch, about
EVENTS = {"step": 60_000, "save": 60_000, "validation": 100_000, "epoch end": 1_000}
CHAINS = ["plain", "accumulation", "validation within the epoch"]


def moments(seed: int) -> list[dict]:
    """Return two random moments in each stage, within its first time in a run."""
    draw = random.Random(seed)
    kills = [{"stage": s, "event": draw.randrange(1, EVENTS[s])} for s in [*EVENTS] * 2]
    draw.shuffle(kills)
    return kills


def drive(base: Path, rows: Path, folder: Path, scenarios: list[dict]) -> dict[str, list[int]]:
    out = warm_python.run(
        [HERE / "drivers" / "resume_driver.py", base, rows, folder],
        input=json.dumps(scenarios),
        timeout=600,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{HERE}:{HERE}/drivers:{HERE.parent}",
        },
    )
    assert out.returncode == 0, out.stderr
    return {(row := json.loads(line))["name"]: row["status"] for line in out.stdout.splitlines()}


def trace(folder: Path) -> dict[int, dict]:
    """Return what each batch computed; a batch computed again after a resume must agree."""
    seen: dict[int, dict] = {}
    for line in (folder / "trace.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert seen.setdefault(row["batch"], row) == row
    return seen


def curve(root: Path) -> list[dict]:
    """Return the history of a run without what two runs cannot have in common: times, memory."""
    lines = [json.loads(line) for line in (root / "history.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"]
        for name in ("tokens_per_second", "peak_memory_mib"):
            line["metrics"].pop(name, None)
    return lines


def compare(folder: Path, status: dict[str, list[int]]) -> None:
    """Compare the run in ``killed`` with the one in ``whole``, bit for bit."""
    log = (folder / "killed/log.txt").read_text()
    assert status["whole"] == [0]
    assert status["killed"][-1] == 0, log
    assert len(trace(folder / "whole")) > 10
    assert trace(folder / "killed") == trace(folder / "whole")
    assert curve(folder / "killed/run") == curve(folder / "whole/run")
    final, whole = ((folder / name / "final.json").read_text() for name in ("killed", "whole"))
    assert final == whole


@pytest.mark.parametrize("setup", SETUPS)
def test_a_run_killed_again_and_again_ends_with_the_same_bits(setup, base, rows, tmp_path):
    scenarios = [{"name": "whole"}, {"name": "killed", "kills": KILLS[setup]}]
    status = drive(base, rows, tmp_path, [{**s, **SETUPS[setup]} for s in scenarios])
    assert status["killed"] == [-9] * len(KILLS[setup]) + [0]
    compare(tmp_path, status)


@pytest.mark.parametrize("setup", CHAINS)
def test_kills_at_random_moments_change_no_bit(setup, base, rows, tmp_path):
    kills, options = moments(CHAINS.index(setup)), SETUPS[setup]
    options = {**options, "trainer": {**options.get("trainer", {}), "max_epochs": 5}}
    scenarios = [{"name": "whole"}, {"name": "killed", "kills": kills}]
    status = drive(base, rows, tmp_path, [{**s, **options} for s in scenarios])
    assert status["killed"] == [-9] * len(kills) + [0]
    compare(tmp_path, status)
    lines = (tmp_path / "killed/kills.jsonl").read_text().splitlines()
    stages = Counter(json.loads(line)["stage"] for line in lines)
    assert stages == dict.fromkeys(EVENTS, 2)


def test_the_number_of_kills_in_the_docs_is_that_of_these_tests():
    kills = sum(map(len, KILLS.values())) + len(CHAINS) * len(moments(0))
    assert kills >= 50
    assert f"| {kills} |" in (HERE.parent / "docs/reliability.md").read_text()
