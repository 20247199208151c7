"""Embeddings, whole modules and tokens' rows beside HF PEFT's: the same files and numbers."""

import pytest
import torch
from peft import LoraConfig

from parity import (
    IDS,
    config_as_hf_reads_it,
    config_json,
    hf_folder,
    hf_reads,
    keys_and_shapes,
    our_folder,
)
from peft_lightning.adapters import LoRA, load_adapter
from rounding import BACKWARD, assert_near, rounding_error
from tiny import tiny_model

SITUATIONS = {
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "both embeddings": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "embedding, tied": {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
    "head, tied": {"target_modules": ["lm_head", "q_proj"], "ensure_weight_tying": True},
    "rslora": {"target_modules": ["embed_tokens"], "use_rslora": True, "rank_pattern": {"e.*": 2}},
    "saved head": {"modules_to_save": ["lm_head"]},
    "saved embedding": {"modules_to_save": ["embed_tokens"]},
    "saved embedding, tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "saved head, tied": {"modules_to_save": ["lm_head"], "ensure_weight_tying": True},
    "both saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "saved norms": {"modules_to_save": ["norm"]},  # HF PEFT takes input_layernorm for one too
    "saved layers": {"target_modules": "all-linear", "modules_to_save": ["up_proj"]},
    "tokens": {"trainable_token_indices": [5, 3]},
    "tokens by name": {"trainable_token_indices": {"embed_tokens": [5, 3]}},
    "tokens of both": {"trainable_token_indices": {"embed_tokens": [5, 3], "lm_head": [5, 3]}},
    "other tokens": {"trainable_token_indices": {"embed_tokens": [5, 3], "lm_head": [5, 4]}},
    "tokens of the head": {"trainable_token_indices": {"lm_head": [5, 4]}},
}
TIED = {"embedding, tied", "head, tied", "saved embedding, tied", "saved head, tied"}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
]


@pytest.fixture(params=["llama", "qwen2"])
def architecture(request):
    """Llama has an output embedding of its own, Qwen 2 ties it to the input embedding."""
    return request.param


@pytest.mark.parametrize("situation", SITUATIONS)
def test_each_reads_the_other_and_the_files_are_the_same(situation, architecture, tmp_path):
    fields = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **SITUATIONS[situation]}
    model = tiny_model(architecture)
    names = [name for name, _ in model.named_parameters()]
    before = model(IDS).logits
    adapter = LoRA(**fields)
    ours = our_folder(adapter, model, tmp_path / "ours")
    config = LoraConfig(task_type="CAUSAL_LM", **fields)
    peft = hf_folder(config, tiny_model(architecture), theirs := tmp_path / "theirs")
    written = keys_and_shapes(theirs)  # its copies of what the base has are large, and not ours
    copies = {key for key in written if key.endswith("base_layer.weight")}
    assert keys_and_shapes(ours) == {k: v for k, v in written.items() if k not in copies}
    if architecture == "llama" or situation not in TIED:  # HF PEFT rewrites the names it ties
        assert config_json(ours) == config_json(theirs)
        assert config_as_hf_reads_it(ours) == config_as_hf_reads_it(theirs)
    logits = model(IDS).logits
    assert (logits - before).abs().max() > 0.1
    assert_near(hf_reads(ours, architecture)(IDS).logits, logits)
    fresh = tiny_model(architecture)
    load_adapter(fresh, theirs)
    assert_near(fresh(IDS).logits, peft(IDS).logits)
    adapter.detach(model)
    assert torch.equal(model(IDS).logits, before)
    assert [name for name, _ in model.named_parameters()] == names


@pytest.mark.parametrize("situation", sorted(SITUATIONS.keys() - TIED))
def test_gradients_are_hf_pefts(situation, architecture, tmp_path):
    fields = {"r": 4, "target_modules": ["q_proj"], **SITUATIONS[situation]}
    config = LoraConfig(task_type="CAUSAL_LM", **fields)
    peft = hf_folder(config, tiny_model(architecture), tmp_path)
    model = tiny_model(architecture)
    load_adapter(model, tmp_path, trainable=True)
    for each in (model, peft):
        each(input_ids=IDS, labels=IDS).loss.backward()
    theirs = {
        name.replace(".default", "").removeprefix("base_model.model."): p.grad
        for name, p in peft.named_parameters()
        if p.requires_grad
    }
    ours = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert set(ours) == set(theirs)
    for name, grad in ours.items():
        assert grad.abs().max() > 0
        error = rounding_error(torch.float32, products=BACKWARD)
        assert (grad - theirs[name]).norm() <= error * theirs[name].norm()


def test_tied_updates_have_one_gradient_the_sum_of_both_uses_of_hf_pefts(tmp_path):
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["embed_tokens"], ensure_weight_tying=True
    )
    peft = hf_folder(config, tiny_model("qwen2"), tmp_path)
    model = tiny_model("qwen2")
    load_adapter(model, tmp_path, trainable=True)
    for each in (model, peft):
        each(input_ids=IDS, labels=IDS).loss.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        "model.embed_tokens.lora_embedding_A",
        "model.embed_tokens.lora_embedding_B",
    ]
    ours, base = model.get_input_embeddings(), peft.base_model.model
    embedding, head = base.model.embed_tokens, base.lm_head
    expected = embedding.lora_embedding_A["default"].grad + head.lora_B["default"].weight.grad.T
    assert_near(ours.lora_embedding_A.grad, expected, products=BACKWARD)
    expected = embedding.lora_embedding_B["default"].grad + head.lora_A["default"].weight.grad.T
    assert_near(ours.lora_embedding_B.grad, expected, products=BACKWARD)


@pytest.mark.parametrize("copy", ["embed_tokens", "lm_head"])
def test_the_bases_own_weights_in_hf_pefts_file_must_be_the_models(copy, tmp_path):
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["embed_tokens", "lm_head"])
    hf_folder(config, tiny_model("llama"), tmp_path)
    assert sum(copy in key for key in keys_and_shapes(tmp_path)) == 3
    other = tiny_model("llama")
    name = "model.embed_tokens" if copy == "embed_tokens" else "lm_head"
    other.get_submodule(name).weight.data[7] += 1
    with pytest.raises(ValueError, match=rf"base weight, \S*{copy}.base_layer.weight, and it is"):
        load_adapter(other, tmp_path)


def test_a_saved_module_of_a_half_precision_base_is_trained_in_float32(tmp_path):
    fields = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    fields["modules_to_save"] = ["lm_head", "model.norm"]
    config = LoraConfig(task_type="CAUSAL_LM", **fields)
    peft = hf_folder(config, tiny_model("llama", torch.bfloat16), theirs := tmp_path / "theirs")
    model = tiny_model("llama", torch.bfloat16)
    load_adapter(model, theirs, trainable=True)
    # the same rounded weights: one rounding more or less of logits around 1 each
    difference = (model(IDS).logits - peft(IDS).logits).float().abs()
    assert difference.max() < 0.1
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert model(IDS).logits.dtype == torch.bfloat16
    ours = our_folder(LoRA(**fields), tiny_model("llama", torch.bfloat16), tmp_path / "ours")
    written = {k: shape for k, (shape, _) in keys_and_shapes(theirs).items()}
    assert {k: shape for k, (shape, _) in keys_and_shapes(ours).items()} == written
    assert {dtype for _, dtype in keys_and_shapes(ours).values()} == {torch.float32}


def test_scaled_embeddings_are_adapted_as_hf_peft_does(tmp_path):
    for name, fields in (
        ("lora", {"target_modules": ["embed_tokens"]}),
        ("tokens", {"target_modules": ["q_proj"], "trainable_token_indices": [5, 3]}),
    ):
        config = LoraConfig(task_type="CAUSAL_LM", r=4, **fields)
        peft = hf_folder(config, tiny_model("gemma3"), tmp_path / name)
        model = tiny_model("gemma3")
        load_adapter(model, tmp_path / name)
        assert_near(model(IDS).logits, peft(IDS).logits)


def test_one_seed_draws_hf_pefts_own_embedding_updates():
    from peft import get_peft_model
    from peft.utils import get_peft_model_state_dict

    targets = ["embed_tokens", "q_proj"]
    model, other = tiny_model("llama"), tiny_model("llama")
    torch.manual_seed(5)
    adapter = LoRA(r=4, target_modules=targets)
    adapter.attach(model)
    torch.manual_seed(5)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets)
    theirs = get_peft_model_state_dict(get_peft_model(other, config), save_embedding_layers=False)
    ours = adapter.state_dict(model)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
