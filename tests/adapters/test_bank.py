"""Many adapters over one base: whichever is in it, the model computes what it alone would."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from peft_lightning.adapters import (
    AdapterBank,
    Full,
    LoRA,
    PromptTuning,
    attached_adapter,
    save_adapter,
)
from peft_lightning.adapters.lora.layers import LoRALinear
from rounding import assert_near
from tiny import tiny_model

ADAPTERS = {
    "small": LoRA(r=2, target_modules=["q_proj", "v_proj"]),
    "large": LoRA(r=8, lora_alpha=4, use_rslora=True, lora_dropout=0.3),
    "prompt": PromptTuning(num_virtual_tokens=3),
}


def logits(model, adapter):
    batch = {"input_ids": torch.arange(12).view(2, 6), "attention_mask": torch.ones(2, 6).long()}
    inputs = batch if adapter is None else adapter.prepare_inputs(model, batch)
    with torch.no_grad():
        return model(**inputs).logits


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three trained adapters, and the logits of the model with each and with none."""
    root, expected = tmp_path_factory.mktemp("bank"), {}
    for seed, (name, adapter) in enumerate(ADAPTERS.items()):
        model = tiny_model("llama", torch.float64)
        adapter.attach(model)
        torch.manual_seed(seed)
        for tensor in adapter.state_dict(model).values():
            tensor.normal_(std=0.3)
        save_adapter(adapter, model, root / name)
        expected[name] = logits(model.eval(), adapter)
    expected["base"] = logits(tiny_model("llama", torch.float64).eval(), None)
    return root, expected


def filled(root):
    model = tiny_model("llama", torch.float64).eval()
    bank = AdapterBank(model)
    for name in ADAPTERS:
        bank.add(name, root / name)
    return model, bank


def test_each_adapter_computes_what_it_does_alone_in_any_order(folders):
    root, expected = folders
    model, bank = filled(root)
    assert bank.names == ["base", *ADAPTERS]
    for name in ["large", "prompt", "base", "small", "large", "small", "prompt", "large", "base"]:
        adapter = bank.use(name)
        assert attached_adapter(model) is adapter
        assert type(adapter) is type(ADAPTERS.get(name))
        assert bank.active == name
        assert torch.equal(logits(model, adapter), expected[name]), name
        assert not any(p.requires_grad for p in model.parameters())


def test_a_switch_is_the_same_work_however_many_adapters_there_are(folders, monkeypatch):
    root, _ = folders
    places, put = [], nn.Module.set_submodule
    monkeypatch.setattr(nn.Module, "set_submodule", lambda *a: places.append(1) or put(*a))
    work = []
    for count in (1, 12):
        model = tiny_model("llama", torch.float64).eval()
        bank = AdapterBank(model)
        for i in range(count):
            bank.add(f"small{i}", root / "small")
        bank.add("large", root / "large")
        bank.use("small0")
        operations = Counter()

        class Counted(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                operations[str(function)] += 1  # noqa: B023
                return function(*args, **(kwargs or {}))

        places.clear()
        with Counted():
            bank.use("large")
        layers = sum(isinstance(m, LoRALinear) for m in model.modules())
        assert len(places) == 4 + layers  # q_proj and v_proj of 2 layers taken out
        work.append((operations, len(list(model.parameters()))))
    assert work[0] == work[1]
    assert work[0][0]["aten.copy_.default"] >= 2 * layers  # A and B of each


def test_the_base_is_bit_identical_after_use(folders):
    root, _ = folders
    model, bank = filled(root)
    for name in [*ADAPTERS, "base"]:
        bank.use(name)
    plain = tiny_model("llama", torch.float64).state_dict()
    assert model.state_dict().keys() == plain.keys()
    assert all(torch.equal(t, plain[name]) for name, t in model.state_dict().items())


def test_an_adapter_can_be_added_while_another_is_in_use(folders):
    root, expected = folders
    model = tiny_model("llama", torch.float64).eval()
    bank = AdapterBank(model)
    bank.add("small", root / "small")
    adapter = bank.use("small")
    bank.add("prompt", root / "prompt")
    assert bank.active == "small"
    assert torch.equal(logits(model, adapter), expected["small"])


def test_what_cannot_be_is_named_and_changes_nothing(folders, tmp_path):
    root, expected = folders
    model, bank = filled(root)
    bank.use("small")
    with pytest.raises(ValueError, match=r"no adapter 'larg'; there are base, small.*mean large"):
        bank.use("larg")
    for name in ("base", "small"):
        with pytest.raises(ValueError, match=f"there is an adapter '{name}' already"):
            bank.add(name, root / "large")
    other = tiny_model("qwen2")
    Full().attach(other)
    save_adapter(Full(), other, tmp_path / "full")
    with pytest.raises(ValueError, match="is a whole model, not an adapter"):
        bank.add("full", tmp_path / "full")
    with pytest.raises(ValueError, match="the model has an adapter already"):
        AdapterBank(model)
    assert torch.equal(logits(model, bank.use("small")), expected["small"])


def test_variants_of_lora_are_switched_and_leave_the_base_bit_identical(tmp_path):
    variants = {
        "dora": LoRA(r=2, use_dora=True),
        "biases": LoRA(r=2, lora_bias=True, bias="all"),
        "pissa": LoRA(r=2, init_lora_weights="pissa"),
    }
    expected = {"base": logits(tiny_model("gpt2"), None)}
    bank = AdapterBank(model := tiny_model("gpt2"))
    for name, adapter in variants.items():
        own = tiny_model("gpt2")
        adapter.attach(own)
        with torch.no_grad():
            for parameter in own.parameters():
                if parameter.requires_grad:
                    parameter += 0.3 * torch.randn_like(parameter)
        save_adapter(adapter, own, tmp_path / name)
        expected[name] = logits(own.eval(), adapter)
        assert (expected[name] - expected["base"]).abs().max() > 0.1
        bank.add(name, tmp_path / name)
    for name in ["biases", "dora", "base", "pissa", "biases", "base"]:
        assert_near(logits(model, bank.use(name)), expected[name])
    plain = tiny_model("gpt2").state_dict()
    assert model.state_dict().keys() == plain.keys()
    assert all(torch.equal(t, plain[name]) for name, t in model.state_dict().items())


def test_an_adapter_that_cannot_be_added_leaves_the_one_in_use(folders, tmp_path):
    root, expected = folders
    model, bank = filled(root)
    other = tiny_model("gpt2", torch.float64)
    (adapter := LoRA(r=2)).attach(other)
    save_adapter(adapter, other, tmp_path)
    adapter = bank.use("large")
    with pytest.raises(ValueError, match="match no linear layer"):
        bank.add("foreign", tmp_path)
    assert bank.active == "large"
    assert torch.equal(logits(model, adapter), expected["large"])
