"""The state of any callback survives in a checkpoint, or is named when it is saved."""

import collections
import datetime
import decimal
import warnings
import zipfile
from dataclasses import dataclass
from enum import Enum, StrEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from cli_driver import drive
from peft_lightning import Constant, LoRA
from peft_lightning.training.saved_state import read_state, write_state
from tiny_run import fit


class Colour(Enum):
    RED = 1


class Name(StrEnum):
    ANN = "ann"


class Point(NamedTuple):
    x: int


@dataclass
class Settings:
    size: int = 1
    names: tuple[str, ...] = ()


@dataclass
class Checked:
    size: int = 1

    def __post_init__(self):
        self.size = abs(self.size)


class Foreign:
    """What only a trusted file may hold."""

    value = 3


HARMLESS = [
    Path("a/b"),
    np.float64(0.5),
    np.int32(3),
    np.bool_(True),
    np.str_("a"),
    np.arange(6).reshape(2, 3),
    np.array(["a", "bc"]),
    np.array([b"\xff"]),
    np.array([None, "a"], dtype=object),
    np.zeros(2, dtype=[("a", "f4"), ("b", "i8")]),
    np.dtype("f4"),
    np.datetime64("2020-01-01"),
    collections.deque([1, Path("a")], maxlen=3),
    collections.defaultdict(list, {"a": [1]}),
    collections.Counter("aab"),
    collections.OrderedDict(a=1),
    datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
    datetime.date(2020, 1, 2),
    datetime.timedelta(seconds=3),
    decimal.Decimal("1.5"),
    frozenset([1]),
    range(3),
    Colour.RED,
    Name.ANN,
    Point(3),
    Settings(2, ("a",)),
    LoRA(r=3),
    Constant(2),
    torch.float16,
    {Path("key"): [(np.float32(1.5), {Colour.RED})]},
]


class Keeps(Callback):
    """Has a value in its state."""

    def __init__(self, value=None):
        self.value, self.found = value, None

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state_dict):
        self.found = state_dict["value"]


def same(found, value):
    if isinstance(value, np.ndarray):
        return found.dtype == value.dtype and found.tolist() == value.tolist()
    return found == value


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", HARMLESS, ids=lambda v: f"{type(v).__name__}")
def test_a_harmless_value_is_read_back_as_it_was(value, tmp_path):
    write_state({"callbacks": {"Keeps": {"value": value}}}, tmp_path / "state.pt", set())
    found = read_state(tmp_path / "state.pt")["callbacks"]["Keeps"]["value"]
    assert type(found) is type(value)
    assert same(found, value)


def test_a_run_goes_on_with_all_of_them_in_the_state_of_a_callback(base, rows, tmp_path):
    fit(base, rows, tmp_path / "run", max_epochs=1, callbacks=[Keeps(HARMLESS)])
    last = tmp_path / "run/checkpoints/last.ckpt"
    keeps = Keeps()
    fit(base, rows, tmp_path / "run", max_epochs=2, callbacks=[keeps], ckpt_path=str(last))
    assert len(keeps.found) == len(HARMLESS)
    assert all(map(same, keeps.found, HARMLESS))


@pytest.mark.parametrize(
    ("value", "name"),
    [(Foreign(), "Foreign"), (Checked(2), "Checked"), (print, "builtin_function")],
)
def test_another_type_is_named_once_when_it_is_saved(value, name, tmp_path):
    told = set()
    state = {"callbacks": {"Keeps": {"inner": [1, value]}}}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            write_state(state, tmp_path / "state.pt", told)
    [warning] = [str(w.message) for w in caught]
    assert "checkpoint['callbacks']['Keeps']['inner'][1] is a" in warning
    assert name in warning
    assert "save plain values there, or resume with weights_only=False" in warning
    assert "\n" not in warning


def test_a_run_with_it_goes_on_if_the_checkpoint_is_trusted(base, rows, tmp_path):
    with pytest.warns(UserWarning, match=r"\['Keeps'\]\['value'\] is a .*Foreign"):
        fit(base, rows, tmp_path / "run", max_epochs=1, callbacks=[Keeps(Foreign())])
    last = str(tmp_path / "run/checkpoints/last.ckpt")
    with pytest.raises(
        ValueError, match=r"holds .*Foreign, which could run code.*weights_only"
    ) as e:
        fit(base, rows, tmp_path / "run", max_epochs=2, callbacks=[Keeps()], ckpt_path=last)
    assert "damaged" not in str(e.value)
    assert "\n" not in str(e.value)
    keeps = Keeps()
    trainer = fit(base, rows, tmp_path / "new", max_epochs=1, callbacks=[keeps])
    trainer.fit_loop.max_epochs = 2
    trainer.fit(trainer.lightning_module, trainer.datamodule, ckpt_path=last, weights_only=False)
    assert keeps.found.value == 3


def test_what_cannot_be_saved_is_an_error_that_names_it(base, rows, tmp_path):
    keeps = Keeps({"change": lambda x: x})
    with pytest.raises(
        ValueError, match=r"\['Keeps'\]\['value'\]\['change'\] is a function, which"
    ):
        fit(base, rows, tmp_path / "run", max_steps=1, callbacks=[keeps])


@pytest.mark.parametrize("content", [b"", b"no file of torch", None])
def test_a_file_that_is_not_whole_may_be_damaged(content, tmp_path):
    file = tmp_path / "state.pt"
    write_state({"a": torch.ones(3), "b": Path("a")}, file, set())
    file.write_bytes(file.read_bytes()[:-50] if content is None else content)
    for trusted in (None, True):
        with pytest.raises(ValueError, match=r"state.pt cannot be read, it may be damaged: .+"):
            read_state(file, trusted)


def test_the_command_line_trusts_a_checkpoint_if_it_is_told(base, rows, tmp_path):
    (tmp_path / "rows.jsonl").write_text(rows.read_text())
    (tmp_path / "mine.py").write_text(
        "from lightning.pytorch.callbacks import Callback\n"
        "class Thing: pass\n"
        "class Own(Callback):\n"
        "    def state_dict(self): return {'thing': Thing()}\n"
        "    def load_state_dict(self, state): print('found', type(state['thing']).__name__)\n"
    )
    (tmp_path / "run.yaml").write_text(
        f"model: {{base_model: {base}, adapter: {{class_path: LoRA, init_args: {{r: 2}}}}}}\n"
        "data: {train: rows.jsonl, cache_dir: cache}\n"
        "trainer: {accelerator: cpu, max_epochs: 1, callbacks: [mine.Own]}\n"
    )
    again = ["fit", "--config", "run.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "2"]
    first, refused, trusted = drive(
        tmp_path, [["fit", "--config", "run.yaml"], again, [*again, "--weights_only", "false"]]
    )
    assert first[0] == 0, first[2]
    assert refused[0] == 2, refused[2]
    assert "mine.Thing" in refused[2].splitlines()[-1]
    assert "--weights_only false" in refused[2].splitlines()[-1]
    assert trusted[0] == 0, trusted[2]
    assert "found Thing" in trusted[1]
    assert "weights_only" not in (tmp_path / "runs/run/config.yaml").read_text()


def test_a_compressed_file_is_refused_before_it_is_unpacked(tmp_path):
    torch.save({"global_step": 1}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name) + bytes(10**3))
    for trust in (None, False):
        with pytest.raises(ValueError, match=r"it is compressed, which torch\.save never"):
            read_state(tmp_path / "bomb.pt", weights_only=trust)
