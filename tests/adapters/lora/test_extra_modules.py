"""Embeddings, whole modules and tokens' rows against their definitions, and what is refused."""

import pytest
import torch
from torch.testing import assert_close

from peft_lightning.adapters import LoRA, attached_adapter
from peft_lightning.adapters.lora.embedding import LoRAEmbedding
from peft_lightning.adapters.lora.modules_to_save import ModulesToSaveWrapper
from peft_lightning.adapters.lora.trainable_tokens import TokenRows, TrainableTokensLayer
from peft_lightning.base_model import base_fingerprint
from rounding import assert_near
from tiny import ARCHITECTURES, tiny_model

IDS = torch.arange(3, 17).view(2, 7)
ONE_LAYER = ["0.self_attn.q_proj"]


def test_an_embeddings_update_is_scaled_b_times_the_column_of_a():
    base = torch.nn.Embedding(9, 4).double()
    layer = LoRAEmbedding(base, r=2, scaling=0.75)
    torch.nn.init.normal_(layer.lora_embedding_A)
    a, b = layer.lora_embedding_A, layer.lora_embedding_B
    assert (a.shape, b.shape, a.dtype) == ((2, 9), (4, 2), torch.float64)
    ids = torch.tensor([[3, 0, 8], [3, 1, 1]])
    expected = torch.stack([base.weight[i] + 0.75 * (b @ a[:, i]) for i in ids.flatten()])
    assert_close(layer(ids), expected.view(2, 3, 4), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(layer(ids), base(ids), atol=1e-3)


def test_an_embeddings_update_starts_at_zero_with_b_normal():
    torch.manual_seed(0)
    layer = LoRAEmbedding(torch.nn.Embedding(50, 400), r=100, scaling=1.0)
    assert layer.lora_embedding_A.abs().max() == 0
    # 40,000 draws: the deviation of their deviation is 1 / sqrt(80,000) = 0.0035
    assert layer.lora_embedding_B.std().item() == pytest.approx(1, abs=0.015)


@pytest.mark.parametrize("kind", ["embedding", "head"])
def test_trained_rows_stand_for_those_of_the_base_and_add_to_them(kind):
    torch.manual_seed(0)
    if kind == "embedding":
        base = torch.nn.Embedding(6, 4).double()
    else:
        base = torch.nn.Linear(4, 6, bias=False).double()
    values = torch.randn(3, 4, dtype=torch.float64)
    layer = TrainableTokensLayer(base, TokenRows([7, 2, 6], values))
    w = base.weight
    whole = torch.stack([w[0], w[1], values[1], w[3], w[4], w[5], values[2], values[0]])
    if kind == "embedding":
        ids = torch.tensor([[7, 2, 0], [5, 6, 6]])
        assert_close(layer(ids), whole[ids], rtol=0, atol=0)
    else:
        x = torch.randn(2, 3, 4, dtype=torch.float64)
        assert_close(layer(x), x @ whole.T, rtol=1e-12, atol=1e-12)


def test_trained_rows_of_a_head_with_a_bias_keep_its_bias():
    base = torch.nn.Linear(4, 6).double()
    layer = TrainableTokensLayer(base, TokenRows([2], torch.ones(1, 4, dtype=torch.float64)))
    x = torch.randn(3, 4, dtype=torch.float64)
    expected = base(x)
    expected[:, 2] = x.sum(1) + base.bias[2]
    assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_only_the_rows_of_the_tokens_get_gradients_and_move():
    model = tiny_model("qwen2")  # tied
    adapter = LoRA(r=2, target_modules=ONE_LAYER, trainable_token_indices=[5, 90])
    adapter.attach(model)
    name = "model.embed_tokens.token_adapter.trainable_tokens_delta"
    rows = dict(model.named_parameters())[name]
    assert torch.equal(rows, model.get_input_embeddings().weight[[5, 90]])
    model(IDS, labels=IDS).loss.backward()
    assert rows.grad.abs().sum(1).min() > 0  # 90 is only in the output, which is tied
    assert model.get_input_embeddings().weight.grad is None


def test_a_saved_module_is_computed_in_the_bases_dtype_from_float32_weights():
    base = torch.nn.Linear(4, 3).bfloat16()
    layer = ModulesToSaveWrapper(base)
    layer.modules_to_save.weight.data += 1e-3  # less than bfloat16 can add to most of them
    x = torch.randn(5, 4).bfloat16()
    rounded = layer.modules_to_save.weight.bfloat16()
    assert torch.equal(layer(x), torch.nn.functional.linear(x, rounded, base.bias))
    layer(x).sum().backward()
    assert {p.grad.dtype for p in layer.modules_to_save.parameters()} == {torch.float32}
    assert base.weight.grad is None


OPTIONS = {
    "embedding": {"target_modules": ["EMBED"]},
    "saved": {"modules_to_save": ["EMBED"]},
    "tokens": {"trainable_token_indices": [4, 100]},
}
EMBED = {"gpt2": "wte", "gpt_neox": "embed_in"}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_start_equals_base_and_detach_gives_it_back(architecture, option):
    model = tiny_model(architecture)
    before, fingerprint = model(IDS).logits, base_fingerprint(model)
    modules = {name: id(module) for name, module in model.named_modules()}
    fields = {"target_modules": "all-linear"} | OPTIONS[option]
    for key, value in fields.items():
        if value == ["EMBED"]:
            fields[key] = [EMBED.get(architecture, "embed_tokens")]
    adapter = LoRA(r=2, **fields)
    adapter.attach(model)
    assert_near(model(IDS).logits, before)
    assert base_fingerprint(model) == fingerprint
    for tensor in adapter.state_dict(model).values():
        tensor += torch.randn(tensor.shape)
    assert not torch.allclose(model(IDS).logits, before, atol=1e-2)
    adapter.detach(model)
    assert {name: id(module) for name, module in model.named_modules()} == modules
    assert torch.equal(model(IDS).logits, before)
    assert not any(p.requires_grad for p in model.parameters())


def test_shorthands_and_other_embeddings_stay_out():
    model = tiny_model("opt")  # its position embedding adds an offset to what it looks up
    LoRA(r=2).attach(model)
    assert not any(isinstance(module, LoRAEmbedding) for module in model.modules())
    with pytest.raises(ValueError, match=r"'embed_positions'.* match no linear layer"):
        LoRA(r=2, target_modules=["embed_positions"]).attach(tiny_model("opt"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"modules_to_save": ["norm", ""]}, r"must name modules, got \['norm', ''\]"),
        (
            {"modules_to_save": ["lm_haed"]},
            r"modules_to_save \['lm_haed'\] match no module.*mean lm_head",
        ),
        (
            {"trainable_token_indices": [128]},
            r"\[128\] are beyond the 128 rows of model.embed_tokens.* added by new_tokens",
        ),
        ({"trainable_token_indices": [3, 3]}, r"each once, got \[3, 3\]"),
        ({"trainable_token_indices": [-1]}, r"each once, got \[-1\]"),
        (
            {"trainable_token_indices": {"embed_token": [3]}},
            "names 'embed_token', and there is no such embedding; there are model.embed_tokens and",
        ),
        (
            {"target_modules": ["embed_tokens"], "trainable_token_indices": [3]},
            "model.embed_tokens would be trained twice, by target_modules and by trainable_token",
        ),
        (
            {"modules_to_save": ["embed_tokens"], "trainable_token_indices": [3]},
            "model.embed_tokens would be trained twice, by modules_to_save and by trainable_token",
        ),
        (
            {
                "trainable_token_indices": {"embed_tokens": [3], "lm_head": [4]},
                "ensure_weight_tying": True,
            },
            r"needs the same trainable_token_indices of .*, got \[3\] and \[4\]",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_leaves_the_model_as_it_was(fields, message):
    model = tiny_model("qwen2").requires_grad_(True)
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(ValueError, match=message):
        LoRA(r=2, **{"target_modules": ONE_LAYER, **fields}).attach(model)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == names
    assert attached_adapter(model) is None
