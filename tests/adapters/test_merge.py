"""Merging into the base's weights: the sum, its rounding, and the way back."""

import pytest
import torch
from peft import LoraConfig
from torch import nn
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

from parity import IDS, hf_folder, randomise
from peft_lightning.adapters import Full, LoRA, PromptTuning, load_adapter
from peft_lightning.adapters.lora.layers import LoRALinear
from peft_lightning.adapters.merge import add_update, merged, merged_weight, require_mergeable
from rounding import assert_near
from tiny import ARCHITECTURES, tiny_model


def layer_of(base, dtype=torch.float32, scaling=0.75):
    layer = LoRALinear(base.to(dtype), r=3, scaling=scaling, init=False)
    for p in (layer.lora_A.weight, layer.lora_B.weight):
        nn.init.normal_(p)
    return layer


def adapted(architecture, adapter, dtype=torch.float32):
    model = tiny_model(architecture, dtype)
    adapter.attach(model)
    randomise(adapter.state_dict(model))
    return model.eval()


@pytest.mark.parametrize("base", [nn.Linear(6, 4), Conv1D(4, 6)], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_merged_weight_is_the_sum_in_float64_rounded_once(base, dtype):
    layer = layer_of(base, dtype)
    a, b = layer.lora_A.weight.double(), layer.lora_B.weight.double()
    update = 0.75 * b @ a  # (out, in)
    exact = layer.weight.double() + (update.T if isinstance(base, Conv1D) else update)
    found = merged_weight(layer)
    assert found.dtype == dtype
    step = torch.finfo(dtype).eps / 2  # of one rounding; float32 sums add some of their own
    few = 1 if dtype in (torch.bfloat16, torch.float16) else 8
    error = (found.double() - exact).abs() / exact.abs().clamp(min=1)
    assert error.max() <= step * (few + 1e-2)


def test_a_weight_may_be_rounded_to_another_dtype_than_its_own():
    layer = layer_of(nn.Linear(6, 4), torch.bfloat16)
    a, b = layer.lora_A.weight, layer.lora_B.weight
    wide = add_update(layer.weight, a, b, 0.75, "x", dtype=torch.float32)
    assert wide.dtype == torch.float32
    assert not torch.equal(wide, wide.bfloat16().float())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_merged_model_computes_what_base_and_adapter_do(architecture):
    adapter = LoRA(r=4, rank_pattern={r"\w*proj\w*": 2}, use_rslora=True)
    if architecture in ("gpt_neox", "opt"):
        adapter = LoRA(r=4, alpha_pattern={r"\w*query\w*|fc1": 5})
    model = adapted(architecture, adapter, torch.float64)
    want = model(IDS).logits
    with merged(model):
        assert not any(isinstance(m, LoRALinear) for m in model.modules())
        assert_near(model(IDS).logits, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unmerging_gives_the_original_tensors_back(dtype):
    model = adapted("llama", LoRA(r=4), dtype)
    originals = {name: p for name, p in model.named_parameters()}
    values = {name: p.clone() for name, p in originals.items()}
    want = model(IDS).logits
    with merged(model):
        assert not torch.equal(
            model.model.layers[0].mlp.up_proj.weight,
            values["model.layers.0.mlp.up_proj.base_layer.weight"],
        )
    back = dict(model.named_parameters())
    assert back.keys() == originals.keys()
    assert all(back[name] is p and torch.equal(p, values[name]) for name, p in originals.items())
    assert torch.equal(model(IDS).logits, want)


def test_the_adapter_comes_back_after_an_error_in_the_block():
    model = adapted("llama", LoRA(r=4))
    want = model(IDS).logits
    with pytest.raises(KeyError), merged(model):
        raise KeyError
    assert torch.equal(model(IDS).logits, want)


def test_a_tied_head_is_merged_without_its_embedding():
    model = adapted("qwen2", LoRA(r=4, target_modules=["lm_head"]), torch.float64)
    embedding = model.get_input_embeddings().weight
    before, want = embedding.clone(), model(IDS).logits
    with merged(model):
        assert_near(model(IDS).logits, want)
        assert torch.equal(model.get_input_embeddings().weight, before)
        assert model.get_output_embeddings().weight is not embedding
    assert model.get_output_embeddings().weight is embedding


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
def test_hf_peft_merges_to_the_same_weights(architecture, tmp_path):
    names = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "mlp.c_proj"]}[architecture]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=names,
        r=4,
        use_rslora=True,
        alpha_pattern={names[0]: 3},
        rank_pattern={names[1]: 2},
    )
    theirs = hf_folder(config, tiny_model(architecture), tmp_path).merge_and_unload().state_dict()
    model = tiny_model(architecture)
    load_adapter(model, tmp_path)
    with merged(model):
        assert_close(model.state_dict(), theirs)


VARIANTS = [
    ("llama", {"use_dora": True}),
    ("gpt2", {"use_dora": True, "use_rslora": True}),
    ("gpt2", {"lora_bias": True}),
    ("gpt2", {"bias": "lora_only", "use_dora": True}),
    ("llama", {"init_lora_weights": "pissa", "use_dora": True}),
]


@pytest.mark.parametrize(("architecture", "fields"), VARIANTS, ids=str)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
def test_variants_are_merged_to_hf_pefts_weights_and_the_originals_come_back(
    architecture, fields, tmp_path
):
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4, **fields)
    theirs = hf_folder(config, tiny_model(architecture), tmp_path).merge_and_unload()
    model = tiny_model(architecture)
    load_adapter(model, tmp_path)
    before = {name: p for name, p in model.named_parameters()}
    want = model(IDS).logits
    with merged(model):
        assert_near(model.state_dict(), theirs.state_dict())
        assert_near(model(IDS).logits, want)
    assert all(p is before[name] for name, p in model.named_parameters())


def test_a_bias_of_the_update_needs_one_of_the_base():
    model = adapted("llama", LoRA(r=4, lora_bias=True))
    with pytest.raises(ValueError, match=r"cannot merge into .*: its update has a bias"):
        merged(model).__enter__()


def test_a_sum_that_is_not_finite_names_its_layer():
    model = adapted("llama", LoRA(r=2, target_modules=["q_proj"]))
    model.model.layers[1].self_attn.q_proj.lora_A.weight.data[0, 0] = float("nan")
    want = dict(model.named_modules())
    with (
        pytest.raises(ValueError, match=r"layers.1.self_attn.q_proj.* is not finite"),
        merged(model),
    ):
        pass
    assert dict(model.named_modules()) == want


def test_a_sum_that_float16_cannot_hold_says_so():
    weight, a, b = torch.zeros(2, 2), torch.full((1, 2), 300.0), torch.full((2, 1), 300.0)
    with pytest.raises(ValueError, match=r"into x: the sum is too large for torch.float16"):
        add_update(weight, a, b, 1.0, "x", dtype=torch.float16)


@pytest.mark.parametrize("weight", [torch.zeros(4, 6).byte(), torch.zeros(12, 1)])
def test_a_weight_that_is_no_matrix_of_the_layers_shape_is_refused(weight):
    with pytest.raises(ValueError, match=r"into x: its weight .*not quantised"):
        add_update(weight, torch.zeros(2, 6), torch.zeros(4, 2), 1.0, "x")


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (PromptTuning(), r"here is a PROMPT_TUNING adapter, .* cannot be merged. Serve it"),
        (Full(), "here is a whole model already"),
        (None, "here has no adapter"),
    ],
)
def test_what_cannot_be_merged_is_told_what_to_do(adapter, message):
    with pytest.raises(ValueError, match=message):
        require_mergeable(adapter, "here")
