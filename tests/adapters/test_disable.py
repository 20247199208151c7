"""An adapter that is disabled for a while: the base computes, and nothing of the adapter moves."""

import copy
import sys
from pathlib import Path

import pytest
import torch

from peft_lightning import UserError
from peft_lightning.adapters import (
    OFT,
    Full,
    LoRA,
    MiSS,
    Partial,
    PrefixTuning,
    PromptTuning,
    attached_adapter,
    disable_adapter,
    load_adapter,
)
from tiny import tiny_model

sys.path.insert(0, str(Path(__file__).parents[2]))
from examples.my_ia3 import IA3  # an adapter of hooks, outside of the package

IDS = torch.arange(12).view(2, 6)
ADAPTERS = {
    "LoRA": LoRA(r=2),
    "dropout": LoRA(r=2, lora_dropout=0.5),
    "OLoRA": LoRA(r=2, init_lora_weights="olora"),
    "PiSSA": LoRA(r=2, init_lora_weights="pissa"),
    "DoRA": LoRA(r=2, use_dora=True),
    "biases": LoRA(r=2, bias="all"),
    "whole modules": LoRA(r=2, modules_to_save=["embed_tokens", "lm_head"]),
    "embeddings": LoRA(r=2, target_modules=["embed_tokens", "q_proj"]),
    "single tokens": LoRA(r=2, trainable_token_indices=[3, 5]),
    "new tokens": LoRA(r=2, new_tokens={"<a>": {"id": 128, "pieces": [4, 5]}}),
    "prompt": PromptTuning(num_virtual_tokens=3),
    "IA3": IA3(),
    "OFT": OFT(oft_block_size=8, module_dropout=0.2),
    "partial": Partial(last_layers=1, norms=True, embeddings=True),
    "MiSS": MiSS(r=4, miss_dropout=0.2),
}


def logits(model):
    """Return the logits with the adapter that is in the model, if there is one."""
    batch, adapter = {"input_ids": IDS}, attached_adapter(model)
    return model(**(adapter.prepare_inputs(model, batch) if adapter else batch)).logits


def state(model):
    """Return all that must not change: parameters, buffers and modules, in their order."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    return [(n, id(t), id(t.grad), t.requires_grad) for n, t in tensors] + [
        (n, id(m), m.training, [*m._forward_hooks.values(), *m._forward_pre_hooks.values()])
        for n, m in model.named_modules()
    ]


@pytest.fixture(params=ADAPTERS)
def trained(request):
    """A model with an adapter that has taken a step, its optimizer, and the base's logits."""
    model, adapter = tiny_model("qwen2"), ADAPTERS[request.param]
    with torch.no_grad():
        expected = logits(model)
    adapter.attach(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in adapter.tensors(model).values():
            if tensor.is_leaf:
                tensor += 0.1 * torch.randn_like(tensor)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    logits(model).logsumexp(-1).sum().backward()
    optimizer.step()
    return model, optimizer, expected


def test_the_model_computes_what_its_base_does_and_then_the_adapter_is_there_as_before(trained):
    model, _, expected = trained
    before, values = state(model), [p.detach().clone() for p in model.parameters()]
    vocabulary = model.config.vocab_size
    with torch.no_grad():
        assert not torch.equal(logits(model)[..., -6:, :128], expected)
        with disable_adapter(model):
            assert torch.equal(logits(model), expected)
    assert state(model) == before
    assert all(map(torch.equal, model.parameters(), values))
    assert model.config.vocab_size == vocabulary


def test_a_step_with_the_base_within_it_is_the_step_without(trained):
    model, optimizer, _ = trained
    copies = [p.detach().clone() for p in model.parameters()]
    moments = copy.deepcopy(optimizer.state_dict())
    ends = []
    for asks_base in (False, True):
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), copies, strict=True):
                parameter.copy_(value)
        optimizer.load_state_dict(copy.deepcopy(moments))
        optimizer.zero_grad()
        torch.manual_seed(1)
        loss = logits(model).logsumexp(-1).sum()
        if asks_base:
            with disable_adapter(model), torch.no_grad():
                logits(model)
        loss.backward()
        optimizer.step()
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(map(torch.equal, *ends))
    assert not all(map(torch.equal, ends[0], copies))


@pytest.mark.parametrize("trained", ["LoRA", "biases"], indirect=True)
def test_an_error_in_the_block_leaves_the_adapter_in_its_place(trained):
    model, _, _ = trained
    before = state(model)
    with pytest.raises(RuntimeError, match="stop"), disable_adapter(model):
        raise RuntimeError("stop")
    assert state(model) == before


@pytest.mark.parametrize("trained", ["LoRA", "prompt"], indirect=True)
def test_what_another_changes_meanwhile_stays_changed(trained):
    model, _, _ = trained
    order = [name for name, _ in model.named_parameters()]
    norm, new = model.model.norm, torch.nn.Parameter(torch.ones(32))
    with disable_adapter(model):
        norm.weight = new  # as a strategy does that shards parameters
    assert norm.weight is new
    assert [name for name, _ in model.named_parameters()] == order


def test_a_prefix_of_keys_and_values_is_disabled_too(tmp_path):
    from peft import PrefixTuningConfig, get_peft_model

    theirs = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    get_peft_model(tiny_model("llama"), theirs).save_pretrained(tmp_path)
    model = tiny_model("llama")
    with torch.no_grad():
        expected = logits(model)
        assert isinstance(load_adapter(model, tmp_path), PrefixTuning)
        with disable_adapter(model):
            assert torch.equal(logits(model), expected)
        assert not torch.equal(logits(model), expected)


def test_full_fine_tuning_has_no_base_and_says_so():
    model = tiny_model("llama")
    (adapter := Full()).attach(model)
    with pytest.raises(UserError, match="has overwritten the base model"), disable_adapter(model):
        pass
    assert attached_adapter(model) == adapter


def test_a_base_is_left_as_it_is_and_a_block_may_be_within_another():
    model = tiny_model("llama").requires_grad_(False)
    before = state(model)
    with disable_adapter(model):
        assert state(model) == before
    (adapter := LoRA(r=2)).attach(model)
    with disable_adapter(model), disable_adapter(model):
        assert attached_adapter(model) is None
        assert state(model) == before
    assert attached_adapter(model) is adapter
