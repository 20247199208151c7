"""What HF PEFT's own tests try, over our API: matching, patterns, small models, names, conversion.

The expected value is what HF PEFT does with the same input; the models are ours, as its tests take
theirs from the hub.
"""

import itertools
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn
from transformers.pytorch_utils import Conv1D

from parity import IDS, randomise
from peft_lightning.adapters import LoRA, load_adapter, save_adapter
from peft_lightning.adapters.lora.targets import Targets
from rounding import BACKWARD, assert_near
from tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")

# ---- which layers ------------------------------------------------------------------------------

NAMES = [
    "proj", "myproj", "a.proj", "a.proj.b", "a.b.1.proj", "a.b.10.proj", "a.b.001.proj", "b.1.proj",
    "a.b.1.c.2.proj", "a.b.2.c.1.proj", "model.layers.1.self_attn.q_proj", "blocks.1.fc",
]  # fmt: skip
TARGETS = [["proj"], ["fc", "q_proj"], ["b.1.proj"], ["a.b.1.proj"], "proj", ".*proj", r".*\.1\..*"]
EXCLUDED = [None, ["proj"], r"a\..*"]
NUMBERS = [None, 1, [1], [0, 2], [0, 1, 2]]
PATTERNS = [None, "b", ["b"], ["c"], ["layers", "blocks"], ["proj"]]


def test_a_list_an_expression_numbers_and_patterns_choose_as_in_hf_peft():
    chosen = set()
    for wanted, excluded, numbers, pattern in itertools.product(
        TARGETS, EXCLUDED, NUMBERS, PATTERNS
    ):
        if (numbers is None) != (pattern is None) or (numbers and isinstance(wanted, str)):
            continue
        config = SimpleNamespace(
            target_modules=set(wanted) if isinstance(wanted, list) else wanted,
            exclude_modules=excluded,
            layers_to_transform=numbers,
            layers_pattern=pattern,
        )
        ours = Targets(wanted, excluded, numbers, pattern)
        for name in NAMES:
            theirs = bool(check_target_module_exists(config, name))
            assert ours._chooses(wanted, name) == theirs, (config, name)
            chosen.add(theirs)
    assert chosen == {True, False}


class Inner(nn.Module):
    """Layers whose names are ends of each other's, at three depths."""

    def __init__(self, depth: int = 0) -> None:
        super().__init__()
        self.foo, self.foobar = nn.Linear(2, 2), nn.Linear(2, 2)
        self.barfoo = nn.Linear(2, 2)
        if depth < 2:
            self.module = Inner(depth + 1)


KEYS = [
    "foo", "^foo", "module.foo", "^module.foo", "module.module.foo", "^module.module.foo", ".*foo",
    "foo.*", "(module.)?foo", "oo",
]  # fmt: skip


@pytest.mark.parametrize("second", [{}, {"foo": 6}, {"^module.foo": 6}], ids=str)
@pytest.mark.parametrize("key", KEYS)
def test_rank_and_alpha_patterns_are_hf_pefts(key, second):
    patterns = {"rank_pattern": {key: 4, **second}, "alpha_pattern": {**second, key: 3}}
    config = LoraConfig(target_modules=["foo", "foobar", "barfoo"], **patterns)
    peft = get_peft_model(Inner(), config).base_model.model
    ours = LoRA(r=8, lora_alpha=8, target_modules=["foo", "foobar", "barfoo"], **patterns)
    layers = [name for name, module in Inner().named_modules() if isinstance(module, nn.Linear)]
    assert len(layers) == 9
    for name in layers:
        layer = peft.get_submodule(name)
        assert (ours.rank(name), ours.scaling(name)) == (
            layer.r["default"],
            layer.scaling["default"],
        )


# ---- small models that are none of transformers ------------------------------------------------


class MLP(nn.Module):
    """Two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.lin0, self.lin1 = nn.Linear(10, 20), nn.Linear(20, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin1(torch.relu(self.lin0(x.float() / 10)))


class EmbConv1D(nn.Module):
    """An embedding below a layer whose weight is transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.conv1d = nn.Embedding(100, 5), Conv1D(1, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv1d(self.emb(x)).flatten(1)


SMALL = {
    "a name as an expression": (MLP, {"target_modules": "lin0"}),
    "one layer": (MLP, {"target_modules": ["lin1"]}),
    "two layers": (MLP, {"target_modules": ["lin0", "lin1"], "lora_alpha": 4}),
    "a layer beside one that is trained whole": (
        MLP,
        {"target_modules": ["lin0"], "modules_to_save": ["lin1"]},
    ),
    "dora": (MLP, {"target_modules": ["lin0", "lin1"], "use_dora": True}),
    "bias of the update": (MLP, {"target_modules": ["lin0"], "lora_bias": True}),
    "biases": (MLP, {"target_modules": ["lin0"], "bias": "all"}),
    "orthogonal": (MLP, {"target_modules": ["lin0"], "init_lora_weights": "orthogonal"}),
    "an embedding": (EmbConv1D, {"target_modules": ["emb"]}),
    "a transposed layer": (EmbConv1D, {"target_modules": ["conv1d"]}),
    "both": (EmbConv1D, {"target_modules": ["emb", "conv1d"], "use_rslora": True}),
    "an embedding trained whole": (
        EmbConv1D,
        {"target_modules": ["conv1d"], "modules_to_save": ["emb"]},
    ),
}
X = torch.arange(90).view(9, 10)


def small(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind().requires_grad_(False).eval()
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        return model


@pytest.mark.parametrize("case", SMALL)
def test_a_small_model_is_loaded_trained_and_read_back_as_by_hf_peft(case, tmp_path):
    kind, fields = SMALL[case]
    peft = get_peft_model(small(kind), LoraConfig(r=4, **fields)).eval()
    with torch.no_grad():
        randomise({n: p for n, p in peft.named_parameters() if p.requires_grad})
    peft.save_pretrained(tmp_path / "theirs")
    model = small(kind)
    adapter = load_adapter(model, tmp_path / "theirs", trainable=True)
    assert_near(model(X), peft(X))
    for each in (model, peft):
        trained = [p for p in each.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            each(X).square().mean().backward()
            optimizer.step()
    start = small(kind)
    load_adapter(start, tmp_path / "theirs")
    assert (model(X) - start(X)).abs().max() > 1e-4
    assert_near(model(X), peft(X), products=3 * BACKWARD)
    save_adapter(adapter, model, tmp_path / "ours")
    assert_near(PeftModel.from_pretrained(small(kind), tmp_path / "ours").eval()(X), model(X))
    adapter.detach(model)
    assert torch.equal(model(X), small(kind)(X))


# ---- saved under a name, and converted ---------------------------------------------------------


@pytest.mark.parametrize("name", ["default", "lora", "a", "lora_A", "q_proj", "model", "weight"])
def test_an_adapters_name_in_hf_peft_makes_no_difference(name, tmp_path):
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], use_dora=True)
    peft = get_peft_model(tiny_model("llama"), config, adapter_name=name).eval()
    with torch.no_grad():
        randomise({n: p for n, p in peft.named_parameters() if p.requires_grad})
    peft.save_pretrained(tmp_path)
    model = tiny_model("llama")
    load_adapter(model, tmp_path if name == "default" else tmp_path / name)
    assert_near(model(IDS).logits, peft(IDS).logits)


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"rank_pattern": {"up_proj": 2}}, {"alpha_pattern": {"up_proj": 3}}, {"use_rslora": True}],
    ids=str,
)
def test_what_hf_peft_converts_to_plain_lora_is_read_as_it_computed(init, fields, tmp_path):
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=init,
        **fields,
    )  # fmt: skip
    peft = get_peft_model(tiny_model("llama"), config).eval()
    peft.peft_config["default"].init_lora_weights = True
    peft.save_pretrained(tmp_path / "start")
    peft.peft_config["default"].init_lora_weights = init
    with torch.no_grad():
        for name, p in peft.named_parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name)))
    logits = peft(IDS).logits
    peft.save_pretrained(
        tmp_path / "plain", path_initial_model_for_weight_conversion=tmp_path / "start"
    )
    model = tiny_model("llama")
    assert (model(IDS).logits - logits).abs().max() > 0.05
    load_adapter(model, tmp_path / "plain")
    assert_near(model(IDS).logits, logits)
