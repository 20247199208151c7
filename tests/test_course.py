"""Each of the course's exercises is a sweep of as many runs as its table says."""

import json
import re
import shlex
from pathlib import Path

import pytest

from sweeping import in_this_process

ROOT = Path(__file__).parents[1]
COURSE = ROOT / "examples" / "course"
EXERCISES = sorted(path for path in COURSE.glob("*.sh") if path.name != "start.sh")
SEEDS = "0,1,2"


def test_each_exercise_has_three_seeds():
    assert f"--seeds {SEEDS} " in (COURSE / "start.sh").read_text()


@pytest.mark.parametrize("script", EXERCISES, ids=lambda path: path.stem)
def test_an_exercise_is_a_sweep_of_as_many_runs_as_the_table_says(script, tmp_path):
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    own = re.search(r"^sweep \w+ (.*)$", script.read_text(), re.MULTILINE)[1]
    args = ["--config", "configs/quickstart.yaml", *shlex.split(own), "--dir", "runs"]
    status, output, errors = in_this_process(
        tmp_path, ["sweep", *args, "--dry_run", "true", "--json", "true"]
    )
    assert status == 0, errors
    points = json.loads(output)["points"]
    row = re.search(rf"\[{script.name}\].*?\| (\d+) \|", (COURSE / "README.md").read_text())
    assert len(points) * len(SEEDS.split(",")) == int(row[1])
