"""Ten families, each as scripts/models_table.py tries it: against transformers and HF PEFT."""

import pytest

from model_checks import CHECKS, RIGHT, check_model

WAYS = {  # how flat batches are run: in the fastest way that computes the same
    "bert": "rows end to end",
    "bloom": "padded rows",
    "falcon_h1": "padded rows",
    "gemma2": "rows end to end",
    "gpt_neo": "rows end to end",
    "llama4_text": "padded rows",
    "mamba": "padded rows",
    "mixtral": "rows end to end",
    "phi": "rows end to end",
    "rwkv": "padded rows",
}


@pytest.mark.parametrize("model_type", WAYS)
def test_a_family_is_right_in_every_way_and_fast_where_it_can_be(model_type, tmp_path):
    found = check_model(model_type, tmp_path)
    assert {name: found[name] for name in CHECKS} == dict.fromkeys(CHECKS, RIGHT)
    assert found["way"].partition(",")[0] == WAYS[model_type]


def test_a_model_whose_tokens_see_those_after_them_is_refused(tmp_path):
    found = check_model("cpmant", tmp_path)
    assert found["losses"].startswith("refused: CpmAntForCausalLM cannot be trained to predict")
    assert "gradients" not in found
