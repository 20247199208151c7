import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

from peft_lightning.adapters import (
    Full,
    LoRA,
    PromptTuning,
    attached_adapter,
    load_adapter,
    save_adapter,
)
from peft_lightning.adapters.lora.layers import LoRALinear
from rounding import assert_near
from tiny import ARCHITECTURES, tiny_model

IDS = torch.arange(3, 17).view(2, 7)


def paper_update(layer, x):
    """alpha / r * (B A) x, section 4.1 of the paper, written as sums over the indices."""
    a, b = layer.lora_A.weight, layer.lora_B.weight
    delta = sum(torch.outer(b[:, k], a[k]) for k in range(a.shape[0]))  # (out, in)
    return layer.scaling * torch.einsum("oi,...i->...o", delta, x)


def test_update_is_scaled_b_a_x_in_float64():
    base = torch.nn.Linear(6, 4).double()
    layer = LoRALinear(base, r=2, scaling=0.75)
    torch.nn.init.normal_(layer.lora_B.weight)
    x = torch.randn(3, 5, 6, dtype=torch.float64)
    expected = x @ base.weight.T + base.bias + paper_update(layer, x)
    assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(layer(x), base(x), atol=1e-3)


def test_update_of_conv1d_is_scaled_b_a_x_in_float64():
    base = Conv1D(4, 6).double()  # 6 -> 4
    layer = LoRALinear(base, r=2, scaling=0.75)
    assert (layer.lora_A.weight.shape, layer.lora_B.weight.shape) == ((2, 6), (4, 2))
    torch.nn.init.normal_(layer.lora_B.weight)
    x = torch.randn(3, 6, dtype=torch.float64)
    expected = x @ base.weight + base.bias + paper_update(layer, x)
    assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("targets", ["all-linear", "attention", "mlp"])
def test_start_equals_base_and_detach_gives_it_back(architecture, targets):
    model = tiny_model(architecture)
    modules = dict(model.named_modules())
    weights = {n: p.clone() for n, p in model.named_parameters()}
    before = model(IDS).logits
    adapter = LoRA(r=2, target_modules=targets, lora_dropout=0.1)
    adapter.attach(model)
    assert torch.equal(model(IDS).logits, before)
    for layer in adapter.layers(model).values():
        torch.nn.init.normal_(layer.lora_B.weight)
    assert not torch.allclose(model(IDS).logits, before, atol=1e-2)
    adapter.detach(model)
    assert {n: id(m) for n, m in model.named_modules()} == {n: id(m) for n, m in modules.items()}
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    assert torch.equal(model(IDS).logits, before)
    assert attached_adapter(model) is None


def test_only_the_adapter_is_trainable_and_every_part_of_it_gets_a_gradient():
    model = tiny_model("llama").requires_grad_(True)
    adapter = LoRA(r=2, init_lora_weights=False)
    adapter.attach(model)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == {n.removeprefix("base_model.model.") for n in adapter.state_dict(model)}
    assert len(trainable) == 2 * 14
    model(IDS, labels=IDS).loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert set(grads) == trainable
    assert all(grad.abs().max() > 0 for grad in grads.values())


@pytest.mark.parametrize("base_dtype", [torch.bfloat16, torch.float16])
def test_adapter_is_float32_over_a_half_precision_base_and_computes_in_its_dtype(base_dtype):
    model = tiny_model("llama", base_dtype)
    adapter = LoRA(r=2, init_lora_weights=False)
    adapter.attach(model)
    assert {t.dtype for t in adapter.state_dict(model).values()} == {torch.float32}
    seen = []
    layer = model.model.layers[0].mlp.up_proj
    x = torch.randn(5, 32).to(base_dtype).requires_grad_()

    def note(tensor):
        if len(tensor) == len(x):
            seen.append(tensor.dtype)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = layer(x)
    assert out.dtype == base_dtype
    assert set(seen) == {base_dtype}  # nothing of x's size is kept in float32
    out.sum().backward()
    assert layer.lora_A.weight.grad.dtype == torch.float32
    expected = layer.base_layer(x).float() + paper_update(layer, x.float())
    # 8 bits of mantissa, a sum of 32 products: 2^-8 times a few
    assert_close(out.float(), expected, rtol=0.05, atol=0.05)


def test_under_autocast_the_update_follows_autocast():
    base = torch.nn.Linear(32, 32)
    layer = LoRALinear(base, 2, 1.0)
    torch.nn.init.normal_(layer.lora_B.weight)
    x = torch.randn(3, 32)
    with torch.autocast("cpu", torch.bfloat16):
        y, again = layer(x), layer(x.bfloat16())
    assert y.dtype == again.dtype == torch.bfloat16
    assert torch.equal(y, again)
    assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)


def test_scaling_is_alpha_over_r_or_over_its_root():
    assert LoRA(r=4, lora_alpha=6).scaling() == 6 / 4
    assert LoRA(r=4, lora_alpha=6, use_rslora=True).scaling() == 6 / 2
    patterned = LoRA(
        r=4,
        lora_alpha=6,
        use_rslora=True,
        rank_pattern={"q_proj": 9},
        alpha_pattern={"layers.1.*": 5},
    )
    assert patterned.scaling("model.layers.0.self_attn.q_proj") == 6 / 3
    assert patterned.scaling("model.layers.1.self_attn.q_proj") == pytest.approx(5 / 3)
    assert patterned.scaling("model.layers.1.self_attn.k_proj") == pytest.approx(5 / 2)


def test_patterns_set_ranks_and_scales_and_the_first_match_wins():
    model = tiny_model("llama")
    adapter = LoRA(
        r=2,
        lora_alpha=2,
        target_modules="attention",
        rank_pattern={"^model.layers.0.self_attn.q_proj": 5, "q_proj": 3, ".*": 4},
        alpha_pattern={"o_proj": 8},
    )
    adapter.attach(model)
    layers = adapter.layers(model)
    ranks = {name.removeprefix("model.layers."): layer.r for name, layer in layers.items()}
    assert ranks["0.self_attn.q_proj"] == 5
    assert ranks["1.self_attn.q_proj"] == 3
    assert ranks["1.self_attn.k_proj"] == 4
    assert layers["model.layers.0.self_attn.q_proj"].scaling == 2 / 5
    assert layers["model.layers.0.self_attn.o_proj"].scaling == 8 / 4


def test_initial_values_are_those_of_the_definition():
    torch.manual_seed(0)
    base = torch.nn.Linear(400, 300)
    kaiming = LoRALinear(base, 50, 1.0, init=True).lora_A.weight
    # U(-1/sqrt(in), 1/sqrt(in)) has deviation 1/sqrt(3 in)
    assert kaiming.abs().max() <= 1 / math.sqrt(400)
    assert kaiming.std().item() == pytest.approx(1 / math.sqrt(3 * 400), rel=0.02)
    gaussian = LoRALinear(base, 50, 1.0, init="gaussian")
    assert gaussian.lora_A.weight.std().item() == pytest.approx(1 / 50, rel=0.02)
    assert gaussian.lora_B.weight.abs().max() == 0
    assert LoRALinear(base, 50, 1.0, init=False).lora_B.weight.abs().max() > 0


def test_one_seed_gives_one_adapter_and_another_seed_another():
    def drawn(seed):
        model = tiny_model("llama")
        torch.manual_seed(seed)
        adapter = LoRA(r=2)
        adapter.attach(model)
        return adapter.state_dict(model)

    first, again, other = drawn(3), drawn(3), drawn(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(not torch.equal(first[n], other[n]) for n in first if "lora_A" in n)


def test_loading_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    LoRA(r=2).attach(tiny_model("llama"), initialise=False)
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_zeroes_inputs_of_the_update_only_at_its_rate():
    torch.manual_seed(0)
    base = torch.nn.Linear(1000, 1000, bias=False)
    layer = LoRALinear(base, 1000, scaling=1.0, dropout=0.25)
    with torch.no_grad():
        base.weight.copy_(2 * torch.eye(1000))
        layer.lora_A.weight.copy_(torch.eye(1000))
        layer.lora_B.weight.copy_(torch.eye(1000))
    x = torch.ones(40, 1000)
    update = layer(x) - base(x)
    values = update.unique()
    assert_close(values, torch.tensor([0, 1 / 0.75]))
    # 40,000 draws: the share has a deviation of sqrt(.25 * .75 / 40000) = 0.002
    assert (update == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert_close(layer.eval()(x), 3 * x)


def test_dropout_is_on_after_attach_while_the_base_stays_in_eval_mode():
    model = tiny_model("llama")
    adapter = LoRA(r=2, lora_dropout=0.5, init_lora_weights=False)
    adapter.attach(model)
    assert not torch.equal(model(IDS).logits, model(IDS).logits)
    training = {name for name, module in model.named_modules() if module.training}
    assert all("_proj" in name and "base_layer" not in name for name in training)
    model.eval()
    assert torch.equal(model(IDS).logits, model(IDS).logits)


def test_the_output_embedding_can_be_named_as_a_target():
    model = tiny_model("qwen2")  # tied
    before = model(IDS).logits
    adapter = LoRA(r=2, target_modules=["lm_head"], init_lora_weights=False)
    adapter.attach(model)
    layer = model.lm_head
    hidden = model.model(IDS).last_hidden_state
    assert_near(model(IDS).logits, before + paper_update(layer, hidden))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 0}, "r must be a whole number of at least 1, got 0"),
        ({"r": 2.5}, "r must be a whole number of at least 1, got 2.5"),
        ({"r": True}, "r must be a whole number of at least 1, got True"),
        ({"lora_alpha": 0}, "lora_alpha must be a number above 0, got 0"),
        ({"lora_alpha": math.nan}, "lora_alpha must be a number above 0, got nan"),
        ({"lora_dropout": 1.0}, "lora_dropout must be at least 0 and below 1, got 1.0"),
        ({"lora_dropout": -0.1}, "lora_dropout must be at least 0 and below 1, got -0.1"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern must be .* got \{'q_proj': 0\}"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern must be names with numbers above 0"),
        ({"init_lora_weights": "gausian"}, "got 'gausian'; did you mean gaussian"),
        (
            {"init_lora_weights": "pisa"},
            "true, false, kaiming, gaussian, .*got 'pisa'; did you mean pissa",
        ),
        ({"target_modules": []}, r"target_modules must name layers, got \[\]"),
        ({"target_modules": "*_proj"}, r"nor a regular expression \(nothing to repeat"),
        ({"exclude_modules": "mlp"}, "exclude_modules takes names .* not the shorthand 'mlp'"),
        ({"layers_to_transform": -1}, "layers_to_transform must be a layer's number.* got -1"),
        ({"layers_to_transform": []}, r"layers_to_transform must be a layer's number.* got \[\]"),
        ({"layers_pattern": "h"}, "layers_pattern 'h' needs layers_to_transform"),
        (
            {"layers_to_transform": 1, "target_modules": ".*q_proj"},
            "cannot be combined with the regular expression '.*q_proj'",
        ),
    ],
)
def test_a_bad_value_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        LoRA(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank_pattern": {"q_prj": 2}}, "rank_pattern key 'q_prj' .*did you mean q_proj"),
        (
            {"alpha_pattern": {"lm_head": 2}},
            "alpha_pattern key 'lm_head' matches no targeted layer",
        ),
        (
            {"layers_to_transform": [1, 2]},
            r"layers_to_transform \[2\] are not there; layers: 0 to 1",
        ),
        (
            {"target_modules": ["q_proj"], "exclude_modules": "model.*"},
            "choose no linear layer once exclude_modules",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_named_and_leaves_it_as_it_was(fields, message):
    model = tiny_model("llama").requires_grad_(True)
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(ValueError, match=message):
        LoRA(**fields).attach(model)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == names
    assert attached_adapter(model) is None


@pytest.mark.parametrize("second", [LoRA(r=2), LoRA(r=3), PromptTuning(), Full()])
def test_a_second_adapter_is_refused(second):
    model = tiny_model("llama")
    LoRA(r=2).attach(model)
    with pytest.raises(ValueError, match=r"already has an adapter, LoRA\(r=2.*detach it first"):
        second.attach(model)


def test_an_adapter_that_is_not_attached_is_refused():
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="is not attached to this model: it has no adapter"):
        LoRA(r=2).detach(model)
    LoRA(r=2).attach(model)
    with pytest.raises(ValueError, match=r"LoRA\(r=3.* is not attached.* it has LoRA\(r=2"):
        LoRA(r=3).state_dict(model)


def test_inputs_pass_through_unchanged():
    batch = {"input_ids": IDS}
    assert LoRA().prepare_inputs(tiny_model("llama"), batch) is batch


def test_grouped_layers_compute_what_each_alone_does_also_in_inference_mode():
    model = tiny_model("llama")
    LoRA(r=2, init_lora_weights=False).attach(model)
    attention = model.model.layers[0].self_attn
    layers = [attention.q_proj, attention.k_proj, attention.v_proj]
    assert {layer.path for layer in layers} == {"grouped"}
    x = torch.randn(2, 5, 32)
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context():
            inside = x.clone()
            for layer in layers:
                assert_near(layer(inside), layer._forward_by_modules(inside), products=3)
            changed = layers[0](inside)
            inside += 1  # the stored results of the others are of another input now
            assert_near(layers[1](inside), layers[1]._forward_by_modules(inside), products=3)
            assert not torch.equal(changed, layers[0](inside))


def test_layers_that_do_not_share_their_input_after_all_are_computed_alone():
    model = tiny_model("llama")
    LoRA(r=2, init_lora_weights=False).attach(model)
    attention = model.model.layers[0].self_attn
    for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
        own = torch.randn(5, 32)
        assert_near(layer(own), layer._forward_by_modules(own), products=3)
    assert attention.q_proj.path == attention.v_proj.path == "fused"


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_fused_gradients_are_those_of_the_plain_layers(architecture):
    model = tiny_model(architecture, torch.float64)
    LoRA(r=2, init_lora_weights=False).attach(model)
    layers = [m for m in model.modules() if isinstance(m, LoRALinear)][:4]
    grads = []
    for plain in (False, True):
        x = torch.linspace(-1, 1, 3 * layers[0].in_features, dtype=torch.float64)
        x = x.view(1, 3, -1).requires_grad_()
        same = [layer for layer in layers if layer.in_features == x.shape[-1]]
        outputs = [layer._forward_by_modules(x) if plain else layer(x) for layer in same]
        out = sum(output.square().sum() for output in outputs)
        parameters = [p for layer in same for p in (layer.lora_A.weight, layer.lora_B.weight)]
        grads.append(torch.autograd.grad(out, [x, *parameters]))
    assert len(grads[0]) >= 5
    for ours, plain in zip(*grads, strict=True):
        assert_close(ours, plain, rtol=1e-12, atol=1e-12)


def test_a_model_that_is_none_of_transformers_is_adapted_saved_and_loaded(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    base, adapter = model(x), LoRA(r=2, target_modules=["0"], init_lora_weights=False)
    adapter.attach(model)
    adapted = model(x)
    save_adapter(adapter, model, tmp_path)
    adapter.detach(model)
    assert torch.equal(model(x), base)
    load_adapter(model, tmp_path)
    assert torch.equal(model(x), adapted)
    assert not torch.equal(adapted, base)


@pytest.mark.parametrize("given", [("q_proj",), 5])
def test_targets_are_a_list_or_an_expression(given):
    with pytest.raises(ValueError, match="target_modules must name layers, got"):
        LoRA(target_modules=given)
