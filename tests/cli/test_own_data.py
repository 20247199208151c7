"""A DataModule of the user's, named by its class path on the command line."""

import json

import pytest
import torch
import yaml

from cli_driver import drive

MINE = """
import lightning as L
import torch
from torch.utils.data import DataLoader, IterableDataset

from peft_lightning import SFTDataModule
from peft_lightning.data.collate import flat_collate


class Tripled(SFTDataModule):
    def __init__(self, times: int = 3, **kwargs):
        super().__init__(**kwargs)
        self.times = times

    def train_dataloader(self):
        print("times", self.times)
        return super().train_dataloader()


def rows(count):
    make = torch.Generator().manual_seed(0)
    return [torch.randint(3, 100, (9,), generator=make).numpy() for _ in range(count)]


def collate(batch):
    return flat_collate([{"input_ids": ids, "labels": ids} for ids in batch])


class Plain(L.LightningDataModule):
    def __init__(self, count: int, batch_size: int = 2):
        super().__init__()
        self.count, self.batch_size = count, batch_size

    def train_dataloader(self):
        return DataLoader(rows(self.count), batch_size=self.batch_size, collate_fn=collate)

    def val_dataloader(self):
        return [DataLoader(rows(n), batch_size=1, collate_fn=collate) for n in (2, 3)]


def reversed_rows(rows):
    print("collated")
    return flat_collate(rows[::-1])
"""


@pytest.fixture(scope="module")
def runs(base, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "mine.py").write_text(MINE)
    common = ["fit", "--model.base_model", str(base), "--trainer.max_epochs", "1"]
    train, plain = ["--data.train", str(rows)], ["--data.class_path", "mine.Plain"]
    config = {"data": {"class_path": "mine.Plain", "init_args": {"count": 7}}}
    (folder / "plain.yaml").write_text(yaml.safe_dump(config))
    cases = {
        "subclass": ["--data.class_path", "mine.Tripled", *train, "--data.times", "4"],
        "subclass by its name": ["--data", "mine.Tripled", *train],
        "plain": [*plain, "--data.count", "6"],
        "yaml": ["--config", "plain.yaml"],
        "collate": [*train, "--data.collate_fn", "mine.reversed_rows"],
        "misspelt": ["--data.class_path", "mine.Plian", "--data.count", "6"],
        "misspelt option": [*plain, "--data.cuont", "6"],
        "no train": ["--data.class_path", "mine.Tripled"],
    }
    lines = [
        [*common, "--trainer.default_root_dir", str(folder / name.replace(" ", "_")), *options]
        for name, options in cases.items()
    ]
    again = [*lines[2], "--ckpt_path", "last", "--trainer.max_epochs", "2"]
    predict = ["predict", *lines[2][1:]]
    predict.remove("--trainer.max_epochs")
    predict.remove("1")
    names = [*cases, "resumed", "predict"]
    return folder, dict(zip(names, drive(folder, [*lines, again, predict]), strict=True))


def step_of(folder):
    state = torch.load(folder / "checkpoints/last.ckpt/trainer_state.pt", weights_only=True)
    return state["global_step"]


@pytest.mark.parametrize(("name", "times"), [("subclass", 4), ("subclass by its name", 3)])
def test_a_subclass_has_our_options_and_its_own(runs, name, times):
    folder, results = runs
    status, output, errors = results[name]
    assert status == 0, errors
    assert f"times {times}" in output
    config = yaml.safe_load((folder / name.replace(" ", "_") / "config.yaml").read_text())
    assert config["data"]["class_path"] == "mine.Tripled"
    assert config["data"]["init_args"]["times"] == times


@pytest.mark.parametrize(("name", "steps"), [("plain", 6), ("yaml", 4)])
def test_a_data_module_with_plain_loaders_trains_and_resumes(runs, name, steps):
    folder, results = runs
    assert results[name][0] == 0, results[name][2]
    if name == "plain":  # two epochs of 3 steps, the second of them resumed
        assert results["resumed"][0] == 0, results["resumed"][2]
    assert step_of(folder / name) == steps
    summary = json.loads((folder / name / "summary.json").read_text())
    assert {"val/loss", "val/loss/0", "val/loss/1"} <= summary["last"].keys()


def test_a_collate_function_is_named_by_its_path(runs):
    status, output, errors = runs[1]["collate"]
    assert status == 0, errors
    assert "collated" in output


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("misspelt", "data: mine has no LightningDataModule 'Plian'; did you mean 'Plain'?"),
        ("misspelt option", "data has no option 'cuont'; did you mean 'count'?"),
        ("no train", "data.train is required for fit"),
        ("predict", "predict writes the rows of an SFTDataModule with their answers: mine.Plain"),
    ],
)
def test_a_mistake_is_one_line(runs, name, said):
    status, _, errors = runs[1][name]
    assert status == 2, errors
    assert said in errors.strip().splitlines()[-1]
