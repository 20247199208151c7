"""What docs/python.md shows runs."""

import re
from pathlib import Path

import yaml

from peft_lightning.cli.class_lookup import find_class

PAGE = (Path(__file__).parents[1] / "docs" / "python.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_program_trains_and_each_validation_source_has_its_loss(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (program,) = blocks("python")
    names = {"__name__": "__main__"}
    exec(program.replace('"BASE"', repr(str(base))), names)
    trainer = names["trainer"]
    assert trainer.global_step == 4
    trainer.validate(names["module"], names["data"], verbose=False)
    assert {"val/loss", "val/loss/seen", "val/loss/new"} <= trainer.callback_metrics.keys()


def test_the_schedule_of_the_yaml_block_is_one_of_torch():
    from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

    (text,) = blocks("yaml")
    schedule = yaml.safe_load(text)["model"]["lr_schedule"]
    assert find_class(schedule["class_path"], (LRScheduler,)) is OneCycleLR
