"""A run that trains nothing, or nonsense, ends with an error that says what to look at."""

import json

import pytest
import torch

from peft_lightning import CausalLMModule, LoRA, PromptTuning
from peft_lightning.training.schedules import Constant
from tiny_run import fit, write_base


class Frozen(CausalLMModule):
    def configure_model(self):
        super().configure_model()
        self.model.requires_grad_(False)


class NotFinite(CausalLMModule):
    def nll(self, batch):
        nll, tokens = super().nll(batch)
        return nll * (torch.nan if self.training and self.trainer.global_step == 1 else 1), tokens


class Detached(CausalLMModule):
    def nll(self, batch):
        nll, tokens = super().nll(batch)
        return nll * 0, tokens


def test_nothing_trainable(base, rows, tmp_path):
    with pytest.raises(ValueError, match=r"nothing is trainable: LoRA\(r=2"):
        fit(base, rows, tmp_path / "run", module_class=Frozen)


def test_no_labelled_token(base, tmp_path):
    rows = tmp_path / "rows.jsonl"
    row = {"prompt": "a long prompt " * 8, "completion": "ok"}
    rows.write_text("".join(json.dumps(row) + "\n" for _ in range(8)))
    with pytest.raises(
        (RuntimeError, ValueError), match=r"no row is left .*max_length 135 would keep all"
    ):
        fit(base, rows, tmp_path / "run", data={"max_length": 40})


def test_all_gradients_zero_in_the_first_step(base, rows, tmp_path):
    with pytest.raises(RuntimeError, match="all gradients of the first step are zero"):
        fit(base, rows, tmp_path / "run", module_class=Detached)


def test_a_loss_that_is_not_finite_and_the_step_before_is_kept(base, rows, tmp_path):
    with pytest.raises(RuntimeError, match=r"loss of step 1 is nan.*learning rate"):
        fit(base, rows, tmp_path / "run", module_class=NotFinite)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "stopped: RunError"


def test_parameters_that_did_not_move_by_the_end(base, rows, tmp_path):
    module = {"learning_rate": 0.0, "lr_schedule": Constant()}
    with pytest.raises(RuntimeError, match=r"no trained parameter moved.*initial 0\.0"):
        fit(base, rows, tmp_path / "run", module=module, max_steps=2)


def test_a_run_that_is_complete_already_is_no_error(base, rows, tmp_path):
    fit(base, rows, tmp_path / "run", adapter=LoRA(r=2), max_epochs=1)
    last = str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert fit(base, rows, tmp_path / "run", max_epochs=1, ckpt_path=last).global_step == 6


def long_rows(folder):
    """Rows of which the longest has more tokens than a tiny model has positions."""
    file = folder / "long.jsonl"
    texts = ["short answer", "long answer " * 30]
    rows = [{"prompt": "say", "completion": text} for text in texts * 4]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
def test_a_row_that_is_longer_than_the_learned_positions_is_an_error_before_the_first_step(
    architecture, tmp_path
):
    base = write_base(tmp_path / "base", architecture)
    with pytest.raises(ValueError, match=r"the longest row has 3\d\d tokens, but the model 256"):
        fit(base, long_rows(tmp_path), tmp_path / "run")
    adapter = PromptTuning(num_virtual_tokens=4)
    with pytest.raises(ValueError, match=r"and 4 virtual ones.*data\.max_length 252 leaves"):
        fit(base, long_rows(tmp_path), tmp_path / "run", adapter=adapter)
    data = {"max_length": 256}
    assert fit(base, long_rows(tmp_path), tmp_path / "run", data=data).global_step > 0


def test_a_row_that_is_longer_than_rotary_positions_is_trained_and_told(
    base, tmp_path, capsys, caplog
):
    caplog.set_level("INFO", logger="lightning.pytorch")
    assert fit(base, long_rows(tmp_path), tmp_path / "run").global_step > 0
    told = capsys.readouterr().err + caplog.text
    assert "has never seen such long texts" in told
    assert "data.max_length 256 leaves longer rows out" in told
