"""Partial fine-tuning: what is chosen is trained, saved and put back, and nothing else moves."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cli_driver import drive
from parity import IDS
from peft_lightning import (
    AdapterBank,
    Partial,
    UserError,
    load_adapter,
    load_base_model,
    save_adapter,
)
from peft_lightning.adapters.merge import merged
from peft_lightning.hidden_cache.frozen_layers import frozen_depth
from peft_lightning.kernels.patch import patch_model
from processes import in_processes, outcome, resumed_and_whole, run
from rounding import BACKWARD, assert_near
from tiny import ARCHITECTURES, tiny_model
from tiny_run import write_base, write_rows

CHOICES = {  # of a llama of two layers, and how many weights that is
    "last layer": (Partial(last_layers=1), 9),
    "norms": (Partial(norms=True), 5),
    "embeddings": (Partial(embeddings=True), 2),
    "modules": (Partial(target_modules=["q_proj", "layers.1.mlp"]), 5),
    "expression": (Partial(target_modules=r"model\.layers\.\d\.mlp\.up_proj"), 2),
    "weights": (Partial(target_parameters=["layers.0.self_attn.q_proj.weight"]), 1),
    "all but": (Partial(last_layers=2, exclude_modules=["mlp"]), 12),
    "together": (Partial(last_layers=1, norms=True, target_modules=["lm_head"]), 13),
}


@pytest.fixture(params=CHOICES)
def choice(request):
    return CHOICES[request.param]


def moved(adapter, model):
    """Attach the adapter and move its tensors."""
    adapter.attach(model)
    torch.manual_seed(0)
    for tensor in adapter.state_dict(model).values():
        tensor += 0.1 * torch.randn_like(tensor)


def test_what_is_chosen_is_trained_and_nothing_else(choice):
    adapter, count = choice
    model = tiny_model("llama", torch.float64)
    before = {name: p.clone() for name, p in model.named_parameters()}
    plain = model(IDS).logits
    adapter.attach(model)
    assert torch.equal(model(IDS).logits, plain)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == count
    assert {f"base_model.model.{name}" for name in trained} == adapter.tensors(model).keys()
    model(IDS, labels=IDS).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in trained)
    adapter.detach(model)
    assert torch.equal(model(IDS).logits, plain)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("adapter", [Partial(last_layers=1, norms=True), Partial(embeddings=True)])
def test_the_gradients_are_those_of_plain_torch_also_by_the_fast_kernels(architecture, adapter):
    model, plain = tiny_model(architecture), tiny_model(architecture).requires_grad_(True)
    adapter.attach(model)
    patch_model(model)
    for one in (model, plain):
        one(IDS, labels=IDS).loss.backward()
    expected = dict(plain.named_parameters())
    found = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert found
    for name, parameter in found.items():
        assert_near(parameter.grad, expected[name].grad, products=BACKWARD)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "gpt_neox"])
def test_a_saved_folder_is_read_back_and_loads_by_plain_torch(architecture, tmp_path):
    adapter = Partial(last_layers=1, norms=True, embeddings=True, biases=architecture == "gpt2")
    model = tiny_model(architecture)
    moved(adapter, model)
    save_adapter(adapter, model, tmp_path)
    fresh = tiny_model(architecture)
    assert load_adapter(fresh, tmp_path) == adapter
    assert torch.equal(fresh(IDS).logits, model(IDS).logits)
    other = tiny_model(architecture)
    file = load_file(tmp_path / "adapter_model.safetensors")
    named = {name.removeprefix("base_model.model."): t for name, t in file.items()}
    assert not other.load_state_dict(named, strict=False).unexpected_keys
    assert torch.equal(other(IDS).logits, model(IDS).logits)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "PARTIAL"


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_tied_embeddings_are_one_weight_and_stay_so_merged(architecture):
    adapter = Partial(embeddings=True)
    model = tiny_model(architecture)
    is_tied = model.config.tie_word_embeddings
    moved(adapter, model)
    assert len(adapter.tensors(model)) == 2 - is_tied
    expected = model(IDS).logits
    with merged(model):
        same = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        assert same == is_tied
        assert torch.equal(model(IDS).logits, expected)
    assert torch.equal(model(IDS).logits, expected)


def test_half_precision_answers_and_does_not_train(tmp_path):
    model = tiny_model("llama")
    moved(Partial(norms=True), model)
    save_adapter(Partial(norms=True), model, tmp_path)
    half = tiny_model("llama", torch.bfloat16)
    load_adapter(half, tmp_path)
    assert half.model.norm.weight.dtype == torch.bfloat16
    assert_near(half.model.norm.weight, model.model.norm.weight.bfloat16())
    with pytest.raises(UserError, match=r"needs float32 weights.*--model.dtype float32"):
        Partial(norms=True).attach(tiny_model("llama", torch.bfloat16))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Partial(), "nothing is: give last_layers, norms, biases"),
        (lambda: Partial(last_layers=-1), "last_layers must be at least 0, got -1"),
        (lambda: Partial(target_modules=[]), "target_modules must be names, or left out"),
        (lambda: Partial(target_modules="(q"), r"target_modules '\(q' is no regular expression"),
        (lambda: Partial(last_layers=3).attach(tiny_model("llama")), "must be at most 2, got 3"),
        (lambda: Partial(biases=True).attach(tiny_model("llama")), "biases True chooses nothing"),
        (
            lambda: Partial(target_modules=["q_proj", "q_prj"]).attach(tiny_model("llama")),
            "chooses nothing in a LlamaForCausalLM; did you mean q_proj",
        ),
        (
            lambda: Partial(target_parameters=["q_proj"]).attach(tiny_model("llama")),
            "target_parameters .* chooses nothing",
        ),
        (
            lambda: Partial(norms=True, exclude_modules="model.*").attach(tiny_model("llama")),
            "leaves nothing to train",
        ),
    ],
)
def test_wrong_inputs_are_named(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_a_bank_switches_to_it_and_back(tmp_path):
    model = tiny_model("llama")
    moved(Partial(last_layers=1), model)
    save_adapter(Partial(last_layers=1), model, tmp_path)
    expected, other = model(IDS).logits, tiny_model("llama").eval()
    plain = other(IDS).logits
    bank = AdapterBank(other)
    bank.add("partial", tmp_path)
    for name in ("partial", "base", "partial"):
        bank.use(name)
        assert torch.equal(other(IDS).logits, plain if name == "base" else expected)


def test_the_layers_below_are_frozen_and_may_be_cached():
    model = tiny_model("llama")
    Partial(last_layers=1).attach(model)
    assert frozen_depth(model) == 1


# ---- runs --------------------------------------------------------------------------------------

OPTIONS = {"last_layers": 1, "norms": True}


def test_a_resumed_run_is_bit_for_bit_the_undisturbed_one(tmp_path, base, rows):
    files = resumed_and_whole(tmp_path, base, rows, ["Partial", OPTIONS])
    ours, expected = map(load_file, files)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_two_processes_train_the_weights_of_one(tmp_path):
    base = write_base(tmp_path / "opt", "opt", torch.float64)
    options = {"base": str(base), "rows": str(write_rows(tmp_path / "9.jsonl", 9))}
    options["adapter"] = ["Partial", {**OPTIONS, "embeddings": True, "biases": True}]
    run(tmp_path / "one", {**options, "data": {"batch_size": 4}}, 1)
    two = {**options, "data": {"batch_size": 2}}
    both = {s: {**two, "trainer": {"strategy": s}} for s in ("ddp", "fsdp2")}
    in_processes(2, tmp_path, both)
    expected = load_file(tmp_path / "one/weights.safetensors")
    for strategy in both:
        assert outcome(tmp_path, strategy)["error"] is None
        ours = load_file(tmp_path / strategy / "weights.safetensors")
        assert ours.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(ours[key], tensor, rtol=1e-7, atol=1e-9)


def test_commands_read_what_was_trained(tmp_path, base, rows):
    config = {
        "model": {
            "base_model": str(base),
            "adapter": {"class_path": "Partial", "init_args": OPTIONS},
        },
        "data": {"train": str(rows), "val": str(rows), "batch_size": 8},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "default_root_dir": "run"},
    }
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(config))
    ckpt = "run/checkpoints/last.ckpt"
    lines = {
        "fit": ["--config", "a.yaml"],
        "generate": ["--ckpt_path", ckpt, "--prompt", "say", "--max_new_tokens", "3"],
        "merge": [ckpt, "merged", "--dtype", "float32"],
        "inspect": [ckpt],
        "card": [ckpt],
        "validate": ["--config", "a.yaml", "--ckpt_path", ckpt],
    }
    done = drive(tmp_path, [[command, *args] for command, args in lines.items()])
    for command, (status, _, errors) in zip(lines, done, strict=True):
        assert status == 0, (command, errors)
    on = ["--model.init_from", ckpt, "--trainer.default_root_dir", "on"]
    served = drive(tmp_path, [["fit", "--config", "a.yaml", *on], ["check-serving", ckpt]])
    assert served[0][0] == 0, served[0][2]
    assert "yes" not in served[1][1]
    model = load_base_model(str(base), dtype="float32")
    load_adapter(model, tmp_path / ckpt)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(plain(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)
