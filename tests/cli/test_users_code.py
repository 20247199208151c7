"""What code of the user's raises is one line, with its function, file and line."""

import shutil

import pytest

from cli_driver import drive

OWN = """\
from lightning.pytorch.callbacks import Callback
from peft_lightning import CausalLMModule

class Begin(Callback):
    def __init__(self):
        raise RuntimeError("boom")

class Key(Callback):
    def on_train_batch_end(self, *args):
        {}["lost"]

class Read(Callback):
    def on_train_batch_end(self, *args):
        open("/nowhere/x")

class Module(CausalLMModule):
    def training_step(self, batch, index):
        return 1 / 0
"""
CASES = [  # options, status, and what the line says
    (["--trainer.callbacks", "[own.Begin]"], 2, "Begin.__init__ (own.py, line 6) raised Runtime"),
    (["--trainer.callbacks", "[own.Key]"], 1, "Key.on_train_batch_end (own.py, line 10) raised K"),
    (["--trainer.callbacks", "[own.Read]"], 2, "Read.on_train_batch_end (own.py, line 14) raise"),
    (["--model", "own.Module"], 1, "Module.training_step (own.py, line 18) raised ZeroDivisionErr"),
]


@pytest.mark.parametrize(("options", "status", "said"), CASES)
def test_what_it_raises_names_function_file_and_line(options, status, said, tmp_path, base, rows):
    shutil.copy(rows, tmp_path / "rows.jsonl")
    (tmp_path / "own.py").write_text(OWN)
    fit = ["fit", "--model.base_model", str(base), "--data.train", "rows.jsonl"]
    fit += ["--trainer.accelerator", "cpu", "--trainer.max_steps", "1", "--data.cache_dir", "cache"]
    found, with_traceback = drive(tmp_path, [[*fit, *options], [*fit, *options, "--debug"]])
    assert found[0] == status, found[2]
    assert said in found[2].splitlines()[-1]
    assert found[2].splitlines()[-1].endswith("--debug shows the traceback")
    assert "Traceback" not in found[2]
    assert "Traceback" in with_traceback[2]
