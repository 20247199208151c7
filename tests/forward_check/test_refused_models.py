"""Models that cannot be trained as asked: refused in one line with the reason."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from model_checks import check_model
from peft_lightning import PromptTuning
from peft_lightning.loss import CausalLMLoss
from peft_lightning.messages import UserError
from tiny_configs import tiny_config
from tiny_run import flat_batch


def test_a_forward_that_gives_other_outputs_each_time(tmp_path):
    found = check_model("reformer", tmp_path)["losses"]
    assert found.startswith("refused: ReformerModelWithLMHead cannot be trained: its own forward")
    assert "gives other outputs each time" in found


@pytest.mark.parametrize("model_type", ["gemma4_text", "blt"])
def test_virtual_tokens_of_a_model_that_wants_the_ids_of_all_tokens(model_type):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type)).eval()
    adapter = PromptTuning(2)
    adapter.attach(model)
    with pytest.raises(UserError, match=r"a row with virtual tokens, .*train a LoRA"):
        CausalLMLoss(model, adapter).nll(flat_batch([5, 9]))
