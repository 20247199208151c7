"""LoRA beside HF PEFT's: the same files, numbers, steps and texts."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict

from parity import (
    IDS,
    config_as_hf_reads_it,
    config_json,
    hf_folder,
    hf_reads,
    keys_and_shapes,
    metadata,
    our_folder,
)
from peft_lightning.adapters import LoRA, load_adapter, read_adapter, save_adapter
from rounding import assert_first_adam_step, assert_near
from tiny import tiny_model

NAMES = {"llama": ["q_proj", "up_proj"], "gpt2": ["c_attn", "mlp.c_proj"]}
LAST = {"llama": "up_proj", "gpt2": "c_attn"}
REGEX = {"llama": r".*\.1\..*_proj", "gpt2": r".*\.1\..*(c_attn|c_proj|c_fc)"}
SITUATIONS = {
    "all-linear": lambda a: {"target_modules": "all-linear"},
    "names": lambda a: {"target_modules": NAMES[a], "lora_dropout": 0.1},
    "regex": lambda a: {"target_modules": REGEX[a], "init_lora_weights": "gaussian"},
    "rslora": lambda a: {"target_modules": NAMES[a], "use_rslora": True, "r": 4, "lora_alpha": 6},
    "layer": lambda a: {"target_modules": NAMES[a], "layers_to_transform": [1]},
    "pattern of layers": lambda a: {
        "target_modules": NAMES[a],
        "layers_to_transform": 0,
        "layers_pattern": "h" if a == "gpt2" else "layers",
    },
    "excluded": lambda a: {"target_modules": "all-linear", "exclude_modules": [LAST[a]]},
    "excluded by regex": lambda a: {"target_modules": NAMES[a], "exclude_modules": r".*\.0\..*"},
    "patterns": lambda a: {
        "target_modules": NAMES[a],
        "r": 2,
        "rank_pattern": {LAST[a]: 5},
        "alpha_pattern": {r"0\..*": 3, LAST[a]: 11},
        "use_rslora": True,
    },
    "HF PEFT's own targets": lambda a: {"target_modules": None},
    "dora": lambda a: {"target_modules": "all-linear", "use_dora": True, "lora_dropout": 0.1},
    "dora with patterns": lambda a: {
        "target_modules": NAMES[a],
        "rank_pattern": {LAST[a]: 2},
        "use_rslora": True,
        "use_dora": True,
    },
    "bias of the update": lambda a: {"target_modules": "all-linear", "lora_bias": True},
    "orthogonal": lambda a: {"target_modules": NAMES[a], "init_lora_weights": "orthogonal"},
}


@pytest.fixture(params=SITUATIONS)
def situation(request):
    return SITUATIONS[request.param]


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]


@pytest.fixture(params=["llama", "gpt2"])
def architecture(request):
    return request.param


def ours_and_theirs(situation, architecture, tmp_path):
    fields = {"r": 4, "lora_alpha": 8, **situation(architecture)}
    model = tiny_model(architecture)
    ours = our_folder(LoRA(**fields), model, tmp_path / "ours")
    config = LoraConfig(task_type="CAUSAL_LM", **fields)
    theirs = hf_folder(config, tiny_model(architecture), tmp_path / "theirs")
    return model.eval(), ours, theirs, tmp_path / "theirs"


def test_each_reads_the_other_and_the_files_are_the_same(situation, architecture, tmp_path):
    model, ours, peft, theirs = ours_and_theirs(situation, architecture, tmp_path)
    assert keys_and_shapes(ours) == keys_and_shapes(theirs)
    assert metadata(ours) == metadata(theirs) == {"format": "pt"}
    assert config_json(ours) == config_json(theirs)
    assert config_as_hf_reads_it(ours) == config_as_hf_reads_it(theirs)
    logits, base = model(IDS).logits, tiny_model(architecture)(IDS).logits
    assert (logits - base).abs().max() > 0.1
    assert_near(hf_reads(ours, architecture)(IDS).logits, logits)
    fresh = tiny_model(architecture)
    load_adapter(fresh, theirs)
    assert_near(fresh(IDS).logits, peft(IDS).logits)


@pytest.mark.parametrize("bias", ["lora_only", "all"])
@pytest.mark.parametrize("targets", [["attn.c_attn"], ["c_attn", "c_fc"]])
def test_trained_biases_are_named_as_hf_names_them(bias, targets, tmp_path):
    situation = lambda a: {"target_modules": targets, "bias": bias}  # noqa: E731
    test_each_reads_the_other_and_the_files_are_the_same(situation, "gpt2", tmp_path)
    names = [n for n in keys_and_shapes(tmp_path / "ours") if n.endswith(".bias")]
    assert len(names) == (2 * len(targets) if bias == "lora_only" else 13)


def test_hf_reads_a_shorthand_of_ours_with_layer_numbers(tmp_path):
    adapter = LoRA(r=2, target_modules="attention", layers_to_transform=[1])
    model = tiny_model("llama")
    ours = our_folder(adapter, model, tmp_path / "ours")
    peft = hf_reads(ours, "llama")
    assert set(get_peft_model_state_dict(peft)) == set(keys_and_shapes(ours))
    assert len(keys_and_shapes(ours)) == 2 * 4
    assert_near(peft(IDS).logits, model(IDS).logits)


def test_twenty_names_and_more_are_written_as_hf_writes_them(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=8, intermediate_size=8, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    model, other = LlamaForCausalLM(config), LlamaForCausalLM(config)
    our_folder(LoRA(r=8, lora_alpha=8), model, tmp_path / "ours")
    hf_folder(
        LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"), other, tmp_path / "hf"
    )
    written = config_json(tmp_path / "ours")
    assert len(written["target_modules"]) == 7
    assert written == config_json(tmp_path / "hf")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dora", [False, True])
def test_a_half_precision_base_keeps_a_float32_file(dtype, dora, tmp_path):
    model = tiny_model("llama", dtype)
    ours = our_folder(LoRA(r=4, lora_alpha=8, use_dora=dora), model, tmp_path / "ours")
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4, use_dora=dora)
    peft = hf_folder(config, tiny_model("llama", dtype), tmp_path / "theirs")
    assert keys_and_shapes(ours) == keys_and_shapes(tmp_path / "theirs")
    assert {dtype for _, dtype in keys_and_shapes(ours).values()} == {torch.float32}
    # two ways of rounding through two layers of a model with logits around 1
    difference = (model(IDS).logits - peft(IDS).logits).float().abs()
    assert difference.max() < (0.5 if dtype == torch.bfloat16 else 0.05)


def test_one_seed_draws_hf_pefts_own_adapter(architecture):
    model, other = tiny_model(architecture), tiny_model(architecture)
    torch.manual_seed(5)
    adapter = LoRA(r=4)
    adapter.attach(model)
    torch.manual_seed(5)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    theirs = get_peft_model_state_dict(get_peft_model(other, config))
    ours = adapter.state_dict(model)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


VARIANTS = [
    ({}, torch.float32),
    ({}, torch.float64),
    ({"use_dora": True}, torch.float32),
    ({"use_dora": True}, torch.float64),
    ({"init_lora_weights": "pissa", "use_dora": True}, torch.float32),
    # an attention's key bias has a gradient of 0, which in float32 is noise
    ({"lora_bias": True}, torch.float64),
    ({"bias": "all"}, torch.float64),
    ({"bias": "lora_only", "use_dora": True}, torch.float64),
]


@pytest.mark.parametrize(("fields", "dtype"), VARIANTS, ids=str)
def test_one_adamw_step_equals_hf_pefts(architecture, dtype, fields, tmp_path):
    theirs = tiny_model(architecture, dtype)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules="all-linear", **fields
    )
    peft = hf_folder(config, theirs, tmp_path / "theirs")
    ours = tiny_model(architecture, dtype)
    adapter = load_adapter(ours, tmp_path / "theirs", trainable=True)
    start = {name: tensor.clone() for name, tensor in adapter.state_dict(ours).items()}
    for model in (ours, peft):
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3)
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    gradients = {f"base_model.model.{name}": p.grad for name, p in ours.named_parameters()}
    moved, expected = adapter.state_dict(ours), get_peft_model_state_dict(peft)
    assert set(moved) == set(expected)
    for name, tensor in moved.items():
        # AdamW's first step moves each weight by the learning rate
        assert (tensor - start[name]).abs().max() > 9e-4
        tensor = tensor.narrow(0, 0, len(expected[name]))  # without what PiSSA subtracts
        if "lora_B.w" in name:
            tensor = tensor.narrow(1, 0, 4)
        gradient = gradients[name][tuple(slice(n) for n in tensor.shape)]
        assert_first_adam_step(tensor, expected[name], gradient, rate=1e-3)


def test_greedy_texts_equal_hf_pefts(architecture, tmp_path):
    model = tiny_model(architecture)
    ours = our_folder(LoRA(r=4, lora_alpha=8), model, tmp_path / "ours")
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    texts = model.generate(input_ids=IDS, **options)
    assert texts.shape[1] == IDS.shape[1] + 12
    assert torch.equal(texts, hf_reads(ours, architecture).generate(input_ids=IDS, **options))
    assert not torch.equal(texts, tiny_model(architecture).generate(input_ids=IDS, **options))


def test_an_adapted_output_embedding_is_read_from_hf_and_checked_against_the_base(tmp_path):
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["lm_head", "q_proj"])
    peft = hf_folder(config, tiny_model("llama"), tmp_path)
    assert "base_model.model.lm_head.base_layer.weight" in keys_and_shapes(tmp_path)
    model = tiny_model("llama")
    load_adapter(model, tmp_path)
    assert_near(model(IDS).logits, peft(IDS).logits)
    with pytest.raises(
        ValueError, match=r"base weight, base_model.model.lm_head.base_layer.weight"
    ):
        load_adapter(tiny_model("llama", seed=1), tmp_path)


def test_an_adapter_saved_again_is_the_same_file(tmp_path):
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], lora_alpha=3)
    hf_folder(config, tiny_model("llama"), tmp_path / "hf")
    model = tiny_model("llama")
    save_adapter(load_adapter(model, tmp_path / "hf"), model, tmp_path / "ours")
    assert config_json(tmp_path / "ours") == config_json(tmp_path / "hf")
    first, second = (read_adapter(tmp_path / name)[1] for name in ("hf", "ours"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_qalora": True}, "sets use_qalora=True, which LoRA does not implement"),
        ({"alora_invocation_tokens": [1]}, r"sets alora_invocation_tokens=\[1\]"),
        ({"layer_replication": [[0, 2]]}, "sets layer_replication="),
        (
            {"target_parameters": ["a.b"]},
            r"target_parameters \['a.b'\] are parameters of no linear",
        ),
        (
            {"kasa_config": {}},
            "sets kasa_config, which is not implemented: load it with HF PEFT, or",
        ),
        ({"init_lora_weights": "x"}, "init_lora_weights must be .* got 'x'"),
        ({"a_key_of_tomorrow": 7}, "sets a_key_of_tomorrow=7"),
        ({"use_qalora": True, "use_bdlora": {"a": 1}}, "sets use_bdlora={'a': 1}, use_qalora=True"),
        ({"init_lora_weights": "corda"}, "'corda' has subtracted .* did not save: save it again"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            "did not save: save it again where it was trained",
        ),
        ({"init_lora_weights": "loftq"}, "give the base that was saved with it"),
    ],
)
def test_what_is_not_implemented_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        LoRA.from_hf_config({"peft_type": "LORA", "target_modules": ["q_proj"], **fields})


def test_keys_that_are_left_out_have_hf_pefts_defaults():
    adapter = LoRA.from_hf_config({"peft_type": "LORA", "target_modules": ["q_proj"]})
    assert (adapter.r, adapter.lora_alpha) == (8, 8)
    assert LoRA.from_hf_config({"peft_type": "LORA"}).target_modules is None


def test_names_of_starts_are_read_in_any_case_as_hf_peft_does():
    for init in ("Gaussian", "OLoRA"):
        adapter = LoRA.from_hf_config({"peft_type": "LORA", "init_lora_weights": init})
        assert adapter.init_lora_weights == init.lower()


def test_unknown_keys_that_are_off_are_accepted():
    config = {"target_modules": ["q_proj"], "tomorrow": None, "use_it": False, "its_config": {}}
    assert LoRA.from_hf_config(config).target_modules == ["q_proj"]
