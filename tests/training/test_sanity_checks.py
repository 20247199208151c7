"""A run that trains nothing, or nonsense, ends with an error that says what to look at."""

import json

import pytest
import torch

from peft_lightning import CausalLMModule, LoRA
from peft_lightning.training.schedules import Constant
from tiny_run import fit


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
    with pytest.raises((RuntimeError, ValueError), match=r"no labelled token|in the loss"):
        fit(base, rows, tmp_path / "run", data={"max_length": 40, "truncation": "truncate"})


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
