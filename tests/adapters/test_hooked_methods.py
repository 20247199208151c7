"""OFT, MiSS and IA3: definitions, HF PEFT's folders both ways, merging, wrong inputs."""

import copy

import pytest
import torch
import torch.nn.functional as F
from peft import IA3Config, MissConfig, OFTConfig, PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from parity import (
    IDS,
    config_as_hf_reads_it,
    config_json,
    hf_folder,
    hf_reads,
    keys_and_shapes,
    metadata,
    our_folder,
    randomise,
)
from peft_lightning import IA3, OFT, MiSS, UserError
from peft_lightning.adapters import disable_adapter, load_adapter, save_adapter
from peft_lightning.adapters.merge import merged
from peft_lightning.kernels.patch import patch_model
from rounding import assert_first_adam_step, assert_near
from tiny import ARCHITECTURES, tiny_model

NAMES = ["q_proj", "v_proj", "down_proj"]
METHODS = {  # ours, HF PEFT's
    "OFT": (OFT(8, target_modules=NAMES), OFTConfig(oft_block_size=8, target_modules=NAMES)),
    "OFT, exact": (
        OFT(8, use_cayley_neumann=False, target_modules=NAMES),
        OFTConfig(oft_block_size=8, use_cayley_neumann=False, target_modules=NAMES),
    ),
    "OFT, two terms": (
        OFT(8, num_cayley_neumann_terms=2, target_modules=NAMES),
        OFTConfig(oft_block_size=8, num_cayley_neumann_terms=2, target_modules=NAMES),
    ),
    "OFT, three terms": (
        OFT(8, num_cayley_neumann_terms=3, target_modules=NAMES),
        OFTConfig(oft_block_size=8, num_cayley_neumann_terms=3, target_modules=NAMES),
    ),
    "OFT, seven terms": (
        OFT(8, num_cayley_neumann_terms=7, target_modules=NAMES),
        OFTConfig(oft_block_size=8, num_cayley_neumann_terms=7, target_modules=NAMES),
    ),
    "OFT, number of blocks": (
        OFT(0, r=4, target_modules=NAMES),
        OFTConfig(r=4, oft_block_size=0, target_modules=NAMES),
    ),
    "OFT, one rotation a layer": (
        OFT(8, block_share=True, target_modules=NAMES),
        OFTConfig(oft_block_size=8, block_share=True, target_modules=NAMES),
    ),
    "OFT, no divisor": (  # of 32, and of down_proj's 48
        OFT(15, target_modules=NAMES),
        OFTConfig(oft_block_size=15, target_modules=NAMES),
    ),
    "OFT, one layer": (
        OFT(8, target_modules=NAMES, layers_to_transform=[1]),
        OFTConfig(oft_block_size=8, target_modules=NAMES, layers_to_transform=[1]),
    ),
    "MiSS": (MiSS(8, target_modules=NAMES), MissConfig(r=8, target_modules=NAMES)),
    "MiSS, a shard that is not full": (
        MiSS(7, target_modules=NAMES),
        MissConfig(r=7, target_modules=NAMES),
    ),
    "MiSS, mini": (
        MiSS(8, init_weights="mini", mini_r=4, target_modules=NAMES),
        MissConfig(r=8, init_weights="mini", mini_r=4, target_modules=NAMES),
    ),
    "MiSS, bat": (
        MiSS(8, init_weights="bat", target_modules=NAMES),
        MissConfig(r=8, init_weights="bat", target_modules=NAMES),
    ),
    "IA3": (
        IA3(NAMES, ["down_proj"]),
        IA3Config(target_modules=NAMES, feedforward_modules=["down_proj"]),
    ),
    "IA3, outputs alone": (
        IA3(["q_proj"]),
        IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
    ),
}

pytestmark = pytest.mark.filterwarnings("ignore:Invalid `oft_block_size`")


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


def theirs(config, architecture, folder, dtype=torch.float32):
    config = copy.deepcopy(config)
    config.task_type = "CAUSAL_LM"
    return hf_folder(config, tiny_model(architecture, dtype), folder)


def trained(adapter, architecture="llama", dtype=torch.float32):
    """Return a model with ``adapter``, whose tensors are random."""
    model = tiny_model(architecture, dtype)
    adapter.attach(model)
    randomise(adapter.state_dict(model))
    return model


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "mistral"])
def test_their_folder_computes_their_logits(method, architecture, tmp_path):
    adapter, config = method
    peft = theirs(config, architecture, tmp_path)
    model = tiny_model(architecture)
    plain = model(IDS).logits
    loaded = load_adapter(model, tmp_path)
    assert type(loaded) is type(adapter)
    assert_near(model(IDS).logits, peft(IDS).logits)
    assert (plain - peft(IDS).logits).abs().max() > 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_our_folder_is_theirs(method, dtype, tmp_path):
    adapter, config = method
    theirs(config, "llama", tmp_path / "theirs", dtype)
    our_folder(adapter, tiny_model("llama", dtype), tmp_path / "ours")
    ours, other = tmp_path / "ours", tmp_path / "theirs"
    assert keys_and_shapes(ours) == keys_and_shapes(other)
    assert metadata(ours) == metadata(other)
    assert config_json(ours) == config_json(other)
    assert config_as_hf_reads_it(ours) == config_as_hf_reads_it(other)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_hf_peft_reads_our_folder_as_the_same_function(method, architecture, tmp_path):
    adapter, _ = method
    model = tiny_model(architecture)
    our_folder(adapter, model, tmp_path)
    assert_near(hf_reads(tmp_path, architecture)(IDS).logits, model(IDS).logits)


def test_a_step_of_adam_is_theirs(method, tmp_path):
    adapter, config = method
    peft = theirs(config, "llama", tmp_path)
    peft.train().base_model.model.eval()
    model = tiny_model("llama")
    adapter = load_adapter(model, tmp_path, trainable=True)
    for module in (peft, model):
        parameters = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=1e-3)
        module(IDS, labels=IDS).loss.backward()
        optimizer.step()
    expected = {n.replace(".default", ""): p for n, p in peft.named_parameters() if p.requires_grad}
    found = adapter.tensors(model)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert_first_adam_step(tensor, expected[name], tensor.grad, 1e-3)


def test_training_starts_from_the_base(method):
    adapter, _ = method
    model = tiny_model("llama", torch.float64)
    expected = model(IDS).logits
    adapter.attach(model)
    assert torch.equal(model(IDS).logits, expected)
    adapter.detach(model)
    assert torch.equal(model(IDS).logits, expected)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert [n for n, _ in model.named_parameters()] == [
        n for n, _ in tiny_model("llama").named_parameters()
    ]


def test_the_merged_model_computes_the_same_and_the_adapter_is_there_again(method):
    adapter, _ = method
    model = trained(adapter, dtype=torch.float64)
    expected = model(IDS).logits
    with merged(model) as plain:
        assert not adapter.layers(model)
        assert_near(plain(IDS).logits, expected)
    assert torch.equal(model(IDS).logits, expected)
    with disable_adapter(model):
        assert torch.equal(model(IDS).logits, tiny_model("llama", torch.float64)(IDS).logits)
    assert torch.equal(model(IDS).logits, expected)


def test_the_fast_kernels_leave_the_hooks_in_place(method):
    adapter, _ = method
    model = trained(adapter)
    expected = model(IDS).logits
    patch_model(model)
    assert_near(model(IDS).logits, expected)


def test_half_precision_keeps_changes_that_are_small_beside_one(method):
    adapter, _ = method
    wide, half = (trained(adapter, dtype=d) for d in (torch.float64, torch.bfloat16))
    for model in (wide, half):
        for tensor in adapter.state_dict(model).values():
            shift = 1.0 if isinstance(adapter, IA3) else 0.0
            tensor.copy_(shift + 3e-4 * torch.arange(tensor.numel()).view_as(tensor) % 7)
    for name, layer in adapter.layers(wide).items():
        x = torch.randn(64, layer.in_features, generator=torch.Generator().manual_seed(0))
        x = x.bfloat16()
        other = half.get_submodule(name)
        weight = other.weight.double()
        base = F.linear(x.double(), weight, None if layer.bias is None else layer.bias)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        change = layer(x.double()) - base
        assert change.abs().max() > 0
        error = (other(x).double() - layer(x.double())).abs().mean()
        assert error < 2**-7 * base.abs().mean()


def test_oft_by_its_definition():
    adapter = OFT(8, use_cayley_neumann=False, target_modules=["q_proj"])
    model = trained(adapter, dtype=torch.float64)
    layer = model.model.layers[1].self_attn.q_proj
    x = torch.randn(3, 32, dtype=torch.float64)
    rotation = torch.zeros(32, 32, dtype=torch.float64)
    for k, numbers in enumerate(adapter.tensor(layer).detach()):
        q = torch.zeros(8, 8, dtype=torch.float64)
        pairs = [(i, j) for i in range(8) for j in range(i + 1, 8)]
        for (i, j), value in zip(pairs, numbers, strict=True):
            q[i, j], q[j, i] = value, -value
        one = torch.eye(8, dtype=torch.float64)
        rotation[8 * k : 8 * k + 8, 8 * k : 8 * k + 8] = (one - q) @ torch.linalg.inv(one + q)
    assert_near(rotation @ rotation.T, torch.eye(32, dtype=torch.float64))
    assert_near(layer(x), x @ rotation @ layer.weight.T)


def test_miss_by_its_definition():
    adapter = MiSS(5, target_modules=["q_proj"])
    model = trained(adapter, dtype=torch.float64)
    layer = model.model.layers[1].self_attn.q_proj
    x = torch.randn(3, 32, dtype=torch.float64)
    expected = x @ layer.weight.T
    for i in range(32):
        expected += x[:, i : i + 1] * adapter.tensor(layer)[i % 5]
    assert_near(layer(x), expected)


def test_ia3_by_its_definition():
    adapter = IA3(["q_proj", "down_proj"], ["down_proj"])
    model = trained(adapter, "qwen2", torch.float64)
    block = model.model.layers[1]
    x, h = torch.randn(3, 32).double(), torch.randn(3, 48).double()
    query, down = block.self_attn.q_proj, block.mlp.down_proj
    assert_near(query(x), (x @ query.weight.T + query.bias) * adapter.tensor(query)[:, 0])
    assert_near(down(h), (h * adapter.tensor(down)[0]) @ down.weight.T)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "gemma3", "opt", "mistral"])
def test_ia3_has_hf_pefts_default_layers(architecture, tmp_path):
    theirs(IA3Config(), architecture, tmp_path / "theirs")
    our_folder(IA3(), tiny_model(architecture), tmp_path / "ours")
    assert keys_and_shapes(tmp_path / "ours") == keys_and_shapes(tmp_path / "theirs")
    model = tiny_model(architecture)
    load_adapter(model, tmp_path / "ours")
    assert_near(hf_reads(tmp_path / "ours", architecture)(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("kind", [OFT(8), MiSS(8), IA3("all-linear", ["down_proj"])], ids=type)
def test_all_linear_is_read_by_hf_peft(kind, tmp_path):
    model = tiny_model("llama")
    our_folder(kind, model, tmp_path)
    assert len(kind.layers(model)) == 14
    assert_near(hf_reads(tmp_path, "llama")(IDS).logits, model(IDS).logits)


def test_dropout_is_of_training_alone_and_of_whole_blocks_in_oft():
    adapter = OFT(8, module_dropout=0.5, target_modules=["q_proj"])
    model = trained(adapter, dtype=torch.float64)
    layer = model.model.layers[0].self_attn.q_proj
    x = torch.randn(2, 32, dtype=torch.float64)
    model.eval()
    whole = adapter.changed_input(layer, x)
    assert torch.equal(adapter.changed_input(layer, x), whole)
    model.train()
    part = adapter.changed_input(layer, x)
    turned = [not torch.equal(part[:, i : i + 8], x[:, i : i + 8]) for i in range(0, 32, 8)]
    assert sum(turned) == 2  # of four blocks
    for i, is_turned in zip(range(0, 32, 8), turned, strict=True):
        if is_turned:
            assert_near(part[:, i : i + 8], whole[:, i : i + 8])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: OFT(8, r=4), "give r or oft_block_size and 0 for the other.*got r 4 and .* 8"),
        (lambda: OFT(0), "give r or oft_block_size"),
        (lambda: OFT(1), "oft_block_size must be at least 2"),
        (lambda: OFT(8, module_dropout=1.0), r"module_dropout must be in \[0, 1\), got 1.0"),
        (lambda: OFT(8, num_cayley_neumann_terms=1), "num_cayley_neumann_terms must be at least 2"),
        (lambda: OFT(0, r=32).attach(tiny_model("llama")), "32 inputs, .* an r of at most 16"),
        (lambda: OFT(8, target_modules=["c_attn"]).attach(tiny_model("gpt2")), "no OFT: train a"),
        (
            lambda: OFT(8, target_modules=["q_prj"]).attach(tiny_model("llama")),
            "did you mean q_proj",
        ),
        (lambda: OFT(8, target_modules=["embed_tokens"]).attach(tiny_model("llama")), "is no lin"),
        (lambda: MiSS(0), "r must be at least 1, got 0"),
        (lambda: MiSS(8, init_weights="bet"), "init_weights must be true, false, mini or bat"),
        (lambda: MiSS(33).attach(tiny_model("llama")), "r 33: .* has 32 inputs"),
        (lambda: MiSS(5, init_weights="bat").attach(tiny_model("llama")), "to divide both"),
        (
            lambda: MiSS(8, init_weights="mini", mini_r=5).attach(tiny_model("llama")),
            "mini_r 5: .* outputs, and mini_r has to divide them",
        ),
        (lambda: MiSS(target_modules=["c_attn"]).attach(tiny_model("gpt2")), "no MiSS: train a"),
        (lambda: IA3(["q_proj"], ["k_proj"]), r"feedforward_modules must be some of \['q_proj'\]"),
        (lambda: IA3(feedforward_modules=["k_proj"]), "give these too"),
        (lambda: IA3().attach(tiny_model("phi3")), "no default target_modules for a phi3 model"),
    ],
)
def test_wrong_inputs_are_named_and_leave_the_model_as_it_was(make, said):
    with pytest.raises(UserError, match=said):
        make()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (OFTConfig(oft_block_size=8, target_modules=NAMES, coft=True), "coft=True"),
        (OFTConfig(oft_block_size=8, target_modules=NAMES, bias="all"), "bias='all'"),
        (MissConfig(r=8, target_modules=NAMES, modules_to_save=["lm_head"]), "modules_to_save"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(config, said, tmp_path):
    theirs(config, "llama", tmp_path)
    with pytest.raises(UserError, match=said):
        load_adapter(tiny_model("llama"), tmp_path)


def test_every_architecture_has_layers_for_oft(tmp_path):
    for architecture in ARCHITECTURES:
        if architecture == "gpt2":
            continue
        model = trained(OFT(8), architecture)
        save_adapter(OFT(8), model, tmp_path / architecture)
        assert_near(hf_reads(tmp_path / architecture, architecture)(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("adapter", [OFT(8), MiSS(4), IA3(["k_proj", "v_proj"])], ids=type)
def test_mixtures_of_experts_with_dense_layers_are_read_by_hf_peft_too(kind, adapter, tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 128}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    sizes |= {"num_experts_per_tok": 2, "num_local_experts": 4}
    if kind == "qwen3_moe":
        sizes |= {"num_experts": 4, "moe_intermediate_size": 16, "mlp_only_layers": [0]}

    def base():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).eval()

    model = base()
    our_folder(adapter, model, tmp_path)
    expected = model(IDS).logits
    assert_near(PeftModel.from_pretrained(base(), tmp_path)(IDS).logits, expected)
    with merged(model):
        assert_near(model(IDS).logits, expected)
