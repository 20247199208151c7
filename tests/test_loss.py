"""The loss by an output embedding that is trained, whole or in rows: never by all its logits."""

import numpy as np
import pytest
import torch

from peft_lightning import LoRA, PromptTuning
from peft_lightning.data.collate import flat_collate, padded_collate
from rounding import BACKWARD, assert_near, rounding_error
from test_architectures import flat_batch, loaded, nll_alone, reference

OPTIONS = {
    "saved head": {"modules_to_save": ["lm_head"]},
    "saved embedding": {"modules_to_save": ["embed_tokens"]},
    "both saved, tied": {"modules_to_save": ["lm_head"], "ensure_weight_tying": True},
    "saved norms": {"modules_to_save": ["norm"]},
    "tokens": {"trainable_token_indices": [5, 70, 3]},
    "tokens of the head": {"trainable_token_indices": {"lm_head": [5, 70, 3]}},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_loss_and_gradients_are_those_of_transformers_own_forward(bases, architecture, option):
    module = loaded(bases[architecture], LoRA(r=2, **OPTIONS[option]))
    for tensor in module.adapter.state_dict(module.model).values():
        tensor += 0.1 * torch.randn(tensor.shape)
    model, adapter = reference(bases[architecture]), LoRA(r=2, **OPTIONS[option])
    adapter.attach(model)
    adapter.load_state_dict(model, module.adapter.state_dict(module.model))
    module.outputs._plain_head = module.outputs.takes_flat(flat_batch())  # checked now
    original, module.model.forward = module.model.forward, None  # what would make all logits
    nll, _ = module.nll(flat_batch())
    expected, _ = nll_alone(model)
    assert_near(nll, expected)
    nll.backward()
    expected.backward()
    for (name, ours), theirs in zip(
        module.adapter.tensors(module.model).items(), adapter.tensors(model).values(), strict=True
    ):
        error = rounding_error(torch.float32, products=BACKWARD)
        assert (ours.grad - theirs.grad).norm() < error * theirs.grad.norm(), name
    module.model.forward, module.outputs._plain_head = original, None
    assert module.outputs._has_plain_head()


def test_an_adapted_head_computes_its_own_logits(bases):
    fields = {"target_modules": ["lm_head"], "init_lora_weights": False}
    module = loaded(bases["llama"], LoRA(r=2, **fields))
    assert not module.outputs._has_plain_head()
    model, adapter = reference(bases["llama"]), LoRA(r=2, **fields)
    adapter.attach(model)
    adapter.load_state_dict(model, module.adapter.state_dict(module.model))
    assert_near(module.nll(flat_batch())[0], nll_alone(model)[0])


@pytest.mark.parametrize("adapter", [LoRA(r=2), PromptTuning(num_virtual_tokens=3)], ids=str)
@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_each_labelled_token_knows_its_sequence(bases, adapter, layout):
    module = loaded(bases["llama"], adapter).eval()
    prefix = list(range(40, 84))  # which the sequences share, and is computed once
    rows = [{"input_ids": np.array([*prefix, *range(5, 5 + n)])} for n in (3, 1, 4)]
    for row in rows:
        row["labels"] = np.where(row["input_ids"] < 40, row["input_ids"], -100)
    rows[1]["labels"][:] = -100
    batch = flat_collate(rows) if layout == "flat" else padded_collate(rows, 0)
    _, targets = module.labelled_logits(batch)
    sequences = module.labelled_sequences(batch)
    assert targets.tolist() == [5, 6, 7, 5, 6, 7, 8]
    assert sequences.tolist() == [0, 0, 0, 2, 2, 2, 2]


def test_the_loss_of_a_disabled_adapter_is_that_of_the_base_whichever_is_asked_first(bases):
    fields = {"target_modules": ["lm_head"], "init_lora_weights": False}
    module = loaded(bases["llama"], LoRA(r=2, **fields))  # whose head is not the base's
    with torch.no_grad():
        with module.disable_adapter():
            of_base = module.nll(flat_batch())[0]
        assert_near(of_base, nll_alone(reference(bases["llama"]))[0])
        assert (module.nll(flat_batch())[0] - of_base).abs() > 0.1
