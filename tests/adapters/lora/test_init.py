"""How LoRA starts: from its definitions, with the base as it was, and as HF PEFT reads it."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from torch import nn
from torch.testing import assert_close

from parity import IDS, hf_folder, hf_reads, keys_and_shapes
from peft_lightning.adapters import LoRA, load_adapter, read_adapter, save_adapter
from peft_lightning.adapters.lora.init import decompose
from peft_lightning.adapters.lora.layers import LoRALinear
from rounding import assert_near
from tiny import tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]
DECOMPOSITIONS = ["olora", "pissa", "pissa_niter_8"]


def test_pissa_is_the_best_approximation_of_its_rank_and_its_factors_share_the_scale():
    weight = torch.randn(7, 5, dtype=torch.float64)
    a, b = decompose(weight, 2, 0.5, "pissa")
    u, s, v = torch.linalg.svd(weight)
    assert_close(0.5 * b @ a, u[:, :2] * s[:2] @ v[:2])
    assert_close(a @ a.T, torch.diag(s[:2] / 0.5), atol=1e-12, rtol=0)
    assert_close(b.T @ b, torch.diag(s[:2] / 0.5), atol=1e-12, rtol=0)


def test_randomised_pissa_comes_near_the_exact_one_with_more_iterations():
    torch.manual_seed(0)
    weight = torch.randn(40, 30, dtype=torch.float64)
    a, b = decompose(weight, 3, 1.0, "pissa")
    errors = []
    for n in (0, 64):
        found_a, found_b = decompose(weight, 3, 1.0, f"pissa_niter_{n}")
        errors.append((found_b @ found_a - b @ a).norm())
    assert errors[1] < 1e-2 * errors[0]


def test_olora_has_orthonormal_columns_and_an_upper_triangle():
    weight = torch.randn(7, 5, dtype=torch.float64)
    a, b = decompose(weight, 3, 0.5, "olora")
    assert_close(b.T @ b, torch.eye(3, dtype=torch.float64))
    assert torch.equal(a, a.triu())
    assert_close((b @ a)[:, :3], weight[:, :3])  # the first columns need no more of R


def test_orthogonal_factors_are_random_and_their_product_is_zero():
    layer = LoRALinear(nn.Linear(12, 9), r=4, scaling=1.0, init="orthogonal")
    a, b = layer.lora_A.weight, layer.lora_B.weight
    assert (b @ a).abs().max() < 1e-6
    assert a.norm() > 0.1
    assert b.norm() > 0.1


@pytest.mark.parametrize("init", DECOMPOSITIONS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("dora", [False, True])
def test_training_starts_from_the_base_which_is_never_changed(architecture, init, dora):
    model = tiny_model(architecture)
    weights = {n: p.clone() for n, p in model.named_parameters()}
    before = model(IDS).logits
    adapter = LoRA(r=4, init_lora_weights=init, use_dora=dora, lora_dropout=0.2)
    adapter.attach(model)
    assert_near(model.eval()(IDS).logits, before)
    model.train()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n.split(".lora_")[1] for n in trained} - {"magnitude_vector"} == {
        "A.weight",
        "B.weight",
    }
    for n, p in model.named_parameters():
        if n in trained:
            p.data += 0.1 * torch.randn_like(p)
    assert (model.eval()(IDS).logits - before).abs().max() > 0.1
    adapter.detach(model)
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    assert torch.equal(model(IDS).logits, before)


def test_dropout_leaves_the_subtracted_update_alone():
    layer = LoRALinear(nn.Linear(6, 4), r=2, scaling=0.5, dropout=0.999, init="pissa")
    x = torch.randn(3, 6)
    a, b = layer.lora_A.weight, layer.lora_B.weight
    torch.manual_seed(0)
    expected = layer.base_layer(x) - 0.5 * x @ a.T @ b.T  # all inputs of the update are dropped
    assert_close(layer(x), expected)
    assert not torch.allclose(layer.eval()(x), expected)


@pytest.mark.parametrize("init", DECOMPOSITIONS)
@pytest.mark.parametrize("rslora", [False, True])
def test_what_is_saved_is_plain_lora_for_every_reader(init, rslora, tmp_path):
    model = tiny_model("llama")
    fields = {"alpha_pattern": {"q_proj": 3}, "rank_pattern": {"v_proj": 2}, "use_rslora": rslora}
    adapter = LoRA(r=4, lora_alpha=6, init_lora_weights=init, **fields)
    adapter.attach(model)
    for layer in adapter.layers(model).values():
        layer.lora_A.weight.data += 0.1 * torch.randn_like(layer.lora_A.weight)
    save_adapter(adapter, model, tmp_path / "a")
    logits = model.eval()(IDS).logits
    assert (logits - tiny_model("llama")(IDS).logits).abs().max() > 0.1
    assert_near(hf_reads(tmp_path / "a", "llama")(IDS).logits, logits)
    plain, tensors, _ = read_adapter(tmp_path / "a")
    assert (plain.r, plain.init_lora_weights) == (8, True)
    assert {t.shape[0] for n, t in tensors.items() if "v_proj.lora_A" in n} == {4}
    fresh = tiny_model("llama")
    load_adapter(fresh, tmp_path / "a")
    assert_near(fresh(IDS).logits, logits)


def test_a_run_is_continued_with_the_same_trained_and_subtracted_update(tmp_path):
    adapter = LoRA(r=4, init_lora_weights="pissa_niter_1")
    model, other = tiny_model("llama"), tiny_model("llama")
    adapter.attach(model)
    saved = {n: t.clone() for n, t in adapter.state_dict(model).items()}
    adapter.attach(other)  # decomposed at random again
    adapter.load_state_dict(other, saved)
    for name, layer in adapter.layers(model).items():
        again = adapter.layers(other)[name]
        assert torch.equal(layer.lora_A.weight, again.lora_A.weight)
        assert torch.equal(layer.lora_B.weight, again.lora_B.weight)
        assert torch.equal(layer.initial_A, again.initial_A)
        assert torch.equal(layer.initial_B, again.initial_B)
    assert torch.equal(model(IDS).logits, other(IDS).logits)


@pytest.mark.parametrize("init", ["olora", "pissa"])
@pytest.mark.parametrize("fields", [{}, {"use_rslora": True, "rank_pattern": {"q_proj": 2}}])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.filterwarnings("ignore:Using Rank-Stabilized LoRA with rank_pattern")
def test_a_folder_in_which_hf_subtracts_from_the_base_gives_hfs_logits(
    init, fields, architecture, tmp_path
):
    if architecture == "gpt2":
        fields = {k: v for k, v in fields.items() if k != "rank_pattern"}
    if architecture == "gpt2" and init == "olora":
        pytest.skip("HF PEFT decomposes the transposed weight")
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules="all-linear",
        init_lora_weights=init, **fields,
    )  # fmt: skip
    peft = hf_folder(config, tiny_model(architecture), tmp_path)
    model = tiny_model(architecture)
    weights = {n: p.clone() for n, p in model.named_parameters()}
    adapter = load_adapter(model, tmp_path, trainable=True)
    assert_near(model.eval()(IDS).logits, peft(IDS).logits)
    save_adapter(adapter, model, tmp_path / "plain")
    assert "base_layer" not in str(keys_and_shapes(tmp_path / "plain"))
    again = hf_reads(tmp_path / "plain", architecture)
    assert_near(again(IDS).logits, peft(IDS).logits)
    adapter.detach(model)
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())


def test_olora_of_hf_peft_over_conv1d_is_refused(tmp_path):
    config = LoraConfig(target_modules=["attn.c_proj"], init_lora_weights="olora")
    hf_folder(config, tiny_model("gpt2"), tmp_path)
    with pytest.raises(ValueError, match="HF PEFT takes its weight for the transposed one"):
        load_adapter(tiny_model("gpt2"), tmp_path)


def test_a_folder_of_eva_is_plain_lora(tmp_path):
    from peft import EvaConfig

    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights="eva",
        eva_config=EvaConfig(), rank_pattern={"q_proj": 6}, alpha_pattern={"q_proj": 12},
    )  # fmt: skip
    peft = hf_folder(config, tiny_model("llama"), tmp_path)
    model = tiny_model("llama")
    load_adapter(model, tmp_path)
    assert_near(model(IDS).logits, peft(IDS).logits)


@pytest.mark.parametrize(
    "init", [True, False, "gaussian", "orthogonal", "olora", "pissa", "pissa_niter_2"]
)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_one_seed_draws_hf_pefts_own_adapter(architecture, init):
    if architecture == "gpt2" and init == "olora":
        pytest.skip("HF PEFT decomposes the transposed weight")
    model, other = tiny_model(architecture), tiny_model(architecture)
    torch.manual_seed(5)
    adapter = LoRA(r=4, lora_alpha=8, init_lora_weights=init)
    adapter.attach(model)
    torch.manual_seed(5)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=init
    )
    theirs = get_peft_model_state_dict(get_peft_model(other, config))
    layers = adapter.layers(model)
    assert len(theirs) == 2 * len(layers)
    for name, layer in layers.items():
        for part in ("lora_A", "lora_B"):
            expected = theirs[f"base_model.model.{name}.{part}.weight"]
            assert_close(getattr(layer, part).weight, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("init", ["pissa", "olora", "pissa_niter_4"])
def test_a_rank_above_the_smaller_side_decomposes_the_whole_weight_as_in_hf_peft(init, tmp_path):
    model, ids = tiny_model("llama", torch.float64), torch.arange(9)[None]
    with torch.no_grad():
        expected = model(ids).logits
        adapter = LoRA(r=20, init_lora_weights=init)  # k_proj is (16, 32)
        adapter.attach(model)
        assert_close(model(ids).logits, expected)
    layer = model.model.layers[0].self_attn.k_proj
    update = layer.scaling * layer.lora_B.weight @ layer.lora_A.weight
    assert_close(update, layer.weight * (layer.scaling if init == "olora" else 1))
    save_adapter(adapter, model, tmp_path / "ours")
    theirs = PeftModel.from_pretrained(tiny_model("llama", torch.float64), tmp_path / "ours")
    with torch.no_grad():
        assert_close(theirs(ids).logits, expected, rtol=1e-5, atol=1e-5)


def test_hf_pefts_folder_of_such_a_rank_is_read(tmp_path):
    torch.manual_seed(0)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=20, target_modules=["k_proj"], init_lora_weights="pissa"
    )
    theirs, ids = get_peft_model(tiny_model("llama"), config), torch.arange(9)[None]
    for name, parameter in theirs.named_parameters():
        if "lora_A" in name:
            parameter.data += 0.1
    theirs.save_pretrained(tmp_path / "hf")
    model = tiny_model("llama")
    load_adapter(model, tmp_path / "hf")
    with torch.no_grad():
        assert_close(model(ids).logits, theirs(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("init", "r", "message"),
    [
        ("orthogonal", 3, "init_lora_weights 'orthogonal' needs an even rank, got r 3"),
    ],
)
def test_a_rank_that_does_not_fit_is_named(init, r, message):
    model = tiny_model("llama").requires_grad_(True)
    with pytest.raises(ValueError, match=message):
        LoRA(r=r, init_lora_weights=init).attach(model)
    assert not any(isinstance(m, LoRALinear) for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
    ],
)
def test_what_only_linear_layers_have_is_refused_for_an_embedding(fields, named):
    adapter = LoRA(r=2, target_modules=["embed_tokens", "q_proj"], **fields)
    with pytest.raises(ValueError, match=f"{named} takes linear layers only, .*model.embed_tokens"):
        adapter.attach(tiny_model("llama"))
