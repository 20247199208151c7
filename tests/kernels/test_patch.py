"""The door of the kernels: what ``patch_model`` changes, reports and undoes."""

import copy
import gc

import pytest
import torch
from torch import nn

from peft_lightning import LoRA
from peft_lightning.kernels import recompute
from peft_lightning.kernels.attention import FLAT_ATTENTION
from peft_lightning.kernels.native.library import kernels_state
from peft_lightning.kernels.patch import patch_model, wrap_forward
from tiny import tiny_model

IDS = torch.arange(14).view(2, 7)


def logits_and_gradients(model):
    model = model.requires_grad_(True)
    logits = model(input_ids=IDS).logits
    grads = torch.autograd.grad(logits.float().square().sum(), list(model.parameters()))
    model.requires_grad_(False)
    return [logits, *grads]


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_patch_that_is_undone_leaves_the_model_as_it_was(architecture, dtype):
    model = tiny_model(architecture, dtype).requires_grad_(False)
    plain = copy.deepcopy(model)
    report = patch_model(model, precision="32-true", activation_checkpointing=True)
    assert any("forward" in layer.__dict__ for layer in model.modules())
    report.undo()
    assert not any("forward" in layer.__dict__ for layer in model.modules())
    assert {p.dtype for p in model.parameters()} == {dtype}
    for found, expected in zip(
        logits_and_gradients(model), logits_and_gradients(plain), strict=True
    ):
        assert torch.equal(found, expected)


def test_a_patch_is_undone_below_an_adapter_that_came_and_went():
    model = tiny_model("llama").requires_grad_(False)
    plain, adapter = copy.deepcopy(model), LoRA(r=2)
    report = patch_model(model)
    adapter.attach(model)
    adapter.detach(model)
    report.undo()
    assert torch.equal(model(input_ids=IDS).logits, plain(input_ids=IDS).logits)


def test_what_a_layer_had_as_forward_before_is_there_again():
    model = tiny_model("llama").requires_grad_(False)
    layer = model.model.layers[0]
    wrap_forward(layer, lambda forward, *args, **kwargs: forward(*args, **kwargs))
    before = layer.forward
    report = patch_model(model, activation_checkpointing=True)
    assert layer.forward is not before
    report.undo()
    assert layer.forward is before


def test_the_report_counts_what_is_fused_by_class():
    model = tiny_model("llama", attn_implementation=FLAT_ATTENTION).requires_grad_(False)
    assert patch_model(model).rows == {
        "norms": "LlamaRMSNorm fused (5)",
        "gated MLPs": "LlamaMLP fused (2)",
        "rotary": "LlamaAttention fused (2)",
        "attention": "each sequence alone, on cpu",
        "on the CPU": kernels_state(),
    }
    assert patch_model(tiny_model("gpt2")).rows["norms"] == "LayerNorm as it is (5)"


def test_a_model_that_is_compiled_is_not_fused_as_well():
    rows = patch_model(tiny_model("llama"), fuse=False).rows
    assert rows == {
        "norms": "LlamaRMSNorm as it is (5)",
        "gated MLPs": "LlamaMLP as it is (2)",
        "attention": "sdpa, of transformers",
    }


def test_a_recipe_lives_as_long_as_its_tensor():
    x = torch.ones(3, requires_grad=True)
    y = 2 * x
    gc.collect()
    count = len(recompute._RECIPES)
    recompute.set_recipe(y, lambda x: 2 * x, x)
    recipe = recompute.find_recipe(y)
    assert torch.equal(recipe.function(*recipe.sources), y)
    assert recompute.find_recipe(y.detach()) is None
    assert recompute.find_recipe(nn.Identity()(y)) is recipe
    del y
    assert len(recompute._RECIPES) == count
