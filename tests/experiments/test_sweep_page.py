"""The commands of docs/sweep.md are right as they stand."""

import re
import shlex
from pathlib import Path

import pytest

from peft_lightning.cli.command import run_function
from peft_lightning.commands.sweep import sweep

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "sweep.md").read_text("utf-8")
COMMANDS = re.findall(r"^python -m peft_lightning sweep (.*)$", PAGE, re.MULTILINE)


def points_of(text: str) -> str:
    """Return the settings of the page that begin with ``text``, as a file would hold them."""
    return next(b for b in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if text in b)


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_passes_the_check_of_its_points(line, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    few = line.replace("--random 16", "--random 2").replace(" --seeds 0,1,2", "")
    words = shlex.split(few)
    place = words.index("--dir")
    args = [*words[:place], *words[place + 2 :], "--dry-run", "--dir", str(tmp_path / "sweep")]
    run_function(sweep, args, "sweep")
    assert re.search(r"\n\d points, \d to train\n$", capsys.readouterr().out)
    assert not (tmp_path / "sweep").exists()


def test_the_file_of_points_is_one(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    (tmp_path / "methods.yaml").write_text(points_of("--points"))
    args = ["--config", "configs/quickstart.yaml", "--points", str(tmp_path / "methods.yaml")]
    run_function(sweep, [*args, "--dry-run", "--dir", str(tmp_path / "sweep")], "sweep")
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[:2]]
    assert names == [
        "adapter=LoRA-r=8-learning_rate=0.003",
        "prompt-16",
    ]
