"""CausalLMModule as one that is subclassed: how near its methods are to the command line."""

import re

from cli_driver import drive

CODE = """
from peft_lightning import CausalLMModule


class Raises(CausalLMModule):
    def nll(self, batch):
        raise RuntimeError("here")
"""
FRAME = r'File ".*/peft_lightning/([\w/]+)\.py", line \d+, in (\w+)'


def test_from_command_to_loss_there_are_five_frames_of_ours(base, rows, tmp_path):
    (tmp_path / "raising.py").write_text(CODE)
    options = {"model": "raising.Raises", "model.base_model": base, "data.train": rows}
    options |= {"data.val_fraction": 0, "trainer.max_steps": 1, "trainer.accelerator": "cpu"}
    args = [f"--{name}={value}" for name, value in options.items()]
    ((status, _, error),) = drive(tmp_path, [["fit", *args, "--debug"]])
    assert status == "traceback"
    assert 'raise RuntimeError("here")' in error
    frames = re.findall(FRAME, error)
    # Lightning calls the step: nothing of ours is between the command line and training_step
    assert [file.split("/")[0] for file, _ in frames] == ["__main__"] * 2 + ["cli"] * 2 + ["module"]
    assert frames[-1] == ("module", "training_step")
