"""What HF PEFT's tests of decoder models and of its models' common behaviour ask, over our API."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig

from parity import IDS, hf_folder, our_folder, randomise
from peft_lightning.adapters import LoRA, PromptTuning, load_adapter, save_adapter
from peft_lightning.adapters.merge import merged
from peft_lightning.commands.combine import combine
from rounding import BACKWARD, assert_near
from tiny import ARCHITECTURES, tiny_model

METHODS = {
    "lora": LoRA(r=4, lora_dropout=0.0),
    "dora": LoRA(r=4, use_dora=True),
    "rows": LoRA(r=4, trainable_token_indices=[3, 5]),
    "head": LoRA(r=4, modules_to_save=["lm_head"]),
    "prompt": PromptTuning(num_virtual_tokens=3),
}
MASK = torch.ones_like(IDS)
pytestmark = pytest.mark.filterwarnings("ignore")


def adapted(architecture, method, dtype=torch.float32):
    model, adapter = tiny_model(architecture, dtype).requires_grad_(False), METHODS[method]
    adapter.attach(model)
    return model, adapter


def logits_of(model, adapter):
    inputs = adapter.prepare_inputs(model, {"input_ids": IDS, "attention_mask": MASK})
    return model(**inputs).logits[:, -IDS.shape[1] :]


def loss_of(model, adapter):
    logits = logits_of(model, adapter)[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten())


def gradients(model, adapter):
    model.zero_grad()
    loss_of(model, adapter).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_steps_lower_the_loss_and_change_what_the_adapter_trains_and_nothing_else(
    architecture, method
):
    model, adapter = adapted(architecture, method)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        (loss := loss_of(model, adapter)).backward()
        assert {n for n, p in model.named_parameters() if p.grad is not None} <= trained
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = model.state_dict()
    moved = {n for n, tensor in after.items() if not torch.equal(tensor, before[n])}
    shared = {tensor.data_ptr() for n, tensor in after.items() if n in trained}  # tied weights
    assert trained <= moved
    assert all(after[n].data_ptr() in shared for n in moved)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_recomputed_activations_give_the_same_gradients(architecture, method, reentrant):
    model, adapter = adapted(architecture, method)
    with torch.no_grad():
        randomise(adapter.state_dict(model))
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    want = gradients(model, adapter)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    found = gradients(model, adapter)
    assert found.keys() == want.keys()
    assert_near(found, want, products=BACKWARD)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_with_an_adapter_is_copied_and_pickled_with_it(method):
    model, adapter = adapted("llama", method)
    with torch.no_grad():
        randomise(adapter.state_dict(model))
    want = logits_of(model, adapter)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits_of(twin, adapter), want)
        adapter.detach(twin)
        assert torch.equal(twin(IDS).logits, tiny_model("llama")(IDS).logits)
    assert torch.equal(logits_of(model, adapter), want)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_input_embeddings_in_the_place_of_ids_give_the_same_logits(architecture):
    model, adapter = adapted(architecture, "lora")
    with torch.no_grad():
        randomise(adapter.state_dict(model))
        embeds = model.get_input_embeddings()(IDS)
        assert_near(model(inputs_embeds=embeds).logits, model(IDS).logits)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_transformers_generate_answers_by_the_adapter_as_under_hf_peft(
    architecture, dtype, beams, tmp_path
):
    """Beams too, positional ids, and half precision: it is the model's own ``generate``."""
    model = tiny_model(architecture, dtype)
    our_folder(LoRA(r=4), model, tmp_path)
    theirs = PeftModel.from_pretrained(tiny_model(architecture, dtype), tmp_path).eval()
    options = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
    found = model.eval().generate(IDS, **options)
    if dtype == torch.float32:
        assert torch.equal(found, theirs.generate(input_ids=IDS, **options))
    plain = tiny_model(architecture, dtype).generate(IDS, **options)
    assert not torch.equal(found, plain)


def two_folders(place, architecture="llama"):
    fields = ({"r": 4}, {"r": 2, "target_modules": ["up_proj"], "use_rslora": True})
    for seed, (name, field) in enumerate(zip("ab", fields, strict=True)):
        model = tiny_model(architecture)
        (adapter := LoRA(**field)).attach(model)
        torch.manual_seed(seed)
        with torch.no_grad():
            for tensor in adapter.state_dict(model).values():
                tensor.normal_(std=0.2)
        save_adapter(adapter, model, place / name)
    return [place / "a", place / "b"]


def merged_one_by_one(folders):
    model = tiny_model("llama")
    for folder in folders:
        adapter = load_adapter(model, folder)
        with merged(model):
            weights = {n: p.detach().clone() for n, p in model.state_dict().items()}
        adapter.detach(model)
        model.load_state_dict(weights)
    return model


def test_adapters_merged_one_after_another_in_any_order_are_their_sum(tmp_path):
    folders = two_folders(tmp_path)
    one, other = merged_one_by_one(folders), merged_one_by_one(folders[::-1])
    combine(str(tmp_path / "sum"), *map(str, folders))
    model = tiny_model("llama")
    load_adapter(model, tmp_path / "sum")
    assert_near(one(IDS).logits, other(IDS).logits)
    assert_near(one(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("weight", [0.25, 3.0, -1.5])
def test_a_weight_of_combine_is_hf_pefts_set_scale(weight, tmp_path):
    folder, _ = two_folders(tmp_path)
    theirs = PeftModel.from_pretrained(tiny_model("llama"), folder).eval()
    for module in theirs.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", weight)
    combine(str(tmp_path / "scaled"), f"{folder}={weight}")
    model = tiny_model("llama")
    load_adapter(model, tmp_path / "scaled")
    assert_near(model(IDS).logits, theirs(IDS).logits)


@pytest.mark.parametrize("number", [0, 1])
def test_only_the_layers_of_layers_to_transform_get_gradients(number):
    model = tiny_model("llama").requires_grad_(False)
    (adapter := LoRA(r=4, target_modules=["q_proj"], layers_to_transform=[number])).attach(model)
    with torch.no_grad():
        randomise(adapter.state_dict(model))
    names = gradients(model, adapter)
    assert names
    assert all(f"layers.{number}." in name for name in names)


def test_a_prefix_of_keys_and_values_is_read_after_a_training_of_hf_peft(tmp_path):
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    theirs = hf_folder(config, tiny_model("llama"), tmp_path / "x").train()
    optimizer = torch.optim.SGD([p for p in theirs.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        theirs(input_ids=IDS, attention_mask=MASK, labels=IDS).loss.backward()
        optimizer.step()
    theirs.eval().save_pretrained(tmp_path / "y")
    model = tiny_model("llama")
    adapter = load_adapter(model, tmp_path / "y")
    assert_near(logits_of(model, adapter), theirs(input_ids=IDS, attention_mask=MASK).logits)


def test_hf_pefts_weighted_sum_of_adapters_is_ours_where_it_is_exact(tmp_path):
    """``cat`` and ``svd``; its ``linear`` is ``hf_linear`` here."""
    for name, seed in (("a", 0), ("b", 1)):
        torch.manual_seed(seed)
        hf_folder(LoraConfig(r=4, target_modules=["q_proj"]), tiny_model("llama"), tmp_path / name)
    theirs = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "a", adapter_name="a")
    theirs.load_adapter(str(tmp_path / "b"), "b")
    for kind in ("cat", "svd"):
        options = {"svd_rank": 8} if kind == "svd" else {}
        theirs.add_weighted_adapter(["a", "b"], [0.5, -2.0], kind, kind, **options)
        theirs.set_adapter(kind)
        rank = 8 if kind == "svd" else None
        out = str(tmp_path / kind)
        combine(out, f"{tmp_path}/a=0.5", f"{tmp_path}/b=-2.0", method=kind, rank=rank)
        model = tiny_model("llama")
        load_adapter(model, out)
        assert_near(model(IDS).logits, theirs.eval()(IDS).logits, products=BACKWARD)
