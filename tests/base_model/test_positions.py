"""How many positions a model has, of each kind of position."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from peft_lightning.base_model.positions import positions_of
from tiny_configs import POSITIONS, tiny_config


@pytest.mark.parametrize(
    ("model_type", "positions"),
    [
        ("llama", POSITIONS),
        ("gpt2", POSITIONS),
        ("opt", POSITIONS),
        ("bart", POSITIONS),
        ("mpt", POSITIONS),
        ("roberta", POSITIONS - 1),  # the first is that of padding
        ("prophetnet", POSITIONS - 2),  # and it predicts from the one after the text's
        ("xlnet", None),
    ],
)
def test_a_row_of_all_positions_can_be_computed(model_type, positions):
    model = AutoModelForCausalLM.from_config(tiny_config(model_type)).eval()
    assert positions_of(model).number == positions
    ids = torch.arange(positions or 300)[None] % 200 + 8
    with torch.no_grad():
        assert model(ids, use_cache=False).logits.shape[:2] == ids.shape
