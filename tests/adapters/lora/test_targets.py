import pytest
import torch
from peft.utils import constants

from peft_lightning.adapters.lora.default_targets import BY_MODEL_TYPE
from peft_lightning.adapters.lora.method import LoRA
from peft_lightning.adapters.lora.name_matching import match_pattern, shortest_suffixes
from peft_lightning.adapters.lora.targets import Targets
from tiny import ARCHITECTURES, tiny_model

ATTENTION = {
    "llama": "q_proj k_proj v_proj o_proj",
    "qwen2": "q_proj k_proj v_proj o_proj",
    "gemma3": "q_proj k_proj v_proj o_proj",
    "mistral": "q_proj k_proj v_proj o_proj",
    "phi3": "qkv_proj o_proj",
    "opt": "q_proj k_proj v_proj out_proj",
    "gpt_neox": "query_key_value dense",
    "gpt2": "attn.c_attn attn.c_proj",
}
MLP = {
    "llama": "gate_proj up_proj down_proj",
    "qwen2": "gate_proj up_proj down_proj",
    "gemma3": "gate_proj up_proj down_proj",
    "mistral": "gate_proj up_proj down_proj",
    "phi3": "gate_up_proj down_proj",
    "opt": "fc1 fc2",
    "gpt_neox": "dense_h_to_4h dense_4h_to_h",
    "gpt2": "mlp.c_fc mlp.c_proj",
}


def ends(architecture, names):
    """Return the last parts of the names, two for GPT-2, whose c_proj is in both blocks."""
    parts = 2 if architecture == "gpt2" else 1
    return sorted(".".join(name.split(".")[-parts:]) for name in names)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shorthands_choose_the_layers_of_each_architecture(architecture):
    model = tiny_model(architecture)
    attention = ends(architecture, Targets("attention").find(model))
    mlp = ends(architecture, Targets("mlp").find(model))
    assert attention == sorted(2 * ATTENTION[architecture].split())
    assert mlp == sorted(2 * MLP[architecture].split())
    assert ends(architecture, Targets("all-linear").find(model)) == sorted(attention + mlp)


def test_the_router_of_experts_is_not_part_of_mlp():
    layer = torch.nn.ModuleDict(
        {"gate": torch.nn.Linear(4, 2), "experts": torch.nn.ModuleList([torch.nn.Linear(4, 4)])}
    )
    model = torch.nn.ModuleDict({"block_sparse_moe": layer})
    assert list(Targets("mlp").find(model)) == ["block_sparse_moe.experts.0"]


@pytest.mark.parametrize(
    ("targets", "chosen"),
    [
        (Targets(["q_proj"]), ["0.self_attn.q_proj", "1.self_attn.q_proj"]),
        (Targets(["model.layers.1.mlp.up_proj"]), ["1.mlp.up_proj"]),
        (Targets(["1.mlp.up_proj"]), ["1.mlp.up_proj"]),
        (Targets(r".*\.1\.mlp\.(up|down)_proj"), ["1.mlp.up_proj", "1.mlp.down_proj"]),
        (
            Targets(r".*mlp.*", exclude_modules=r".*(up|gate)_proj"),
            ["0.mlp.down_proj", "1.mlp.down_proj"],
        ),
        (Targets("mlp", ["up_proj", "0.mlp.gate_proj"], [0]), ["0.mlp.down_proj"]),
        (Targets(["v_proj"], layers_to_transform=1), ["1.self_attn.v_proj"]),
        (Targets(["model.layers.0.mlp.up_proj"], None, [1]), ["0.mlp.up_proj"]),
        (Targets(["v_proj"], None, [0], "layers"), ["0.self_attn.v_proj"]),
        (Targets(["v_proj"], None, [0], ["h", "layers"]), ["0.self_attn.v_proj"]),
    ],
)
def test_names_expressions_exclusions_and_layer_numbers_choose(targets, chosen):
    found = targets.find(tiny_model("llama"))
    assert list(found) == [f"model.layers.{name}" for name in chosen]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            ["q_proj", "wq"],
            r"\['wq'\] match no linear layer or embedding; there are embed_tokens, q_proj, .*head$",
        ),
        (["q_prj"], r"\['q_prj'\] match no linear layer.*did you mean q_proj\?"),
        (["proj"], r"\['proj'\] match no linear layer"),
        (["mlp"], r"\['mlp'\] match no linear layer"),
        (
            "q_proj",
            r"regular expression for a layer's whole name: did you mean the list \[q_proj\]",
        ),
        ("all_linear", r"did you mean all-linear\?"),
        (["norm"], r"\['norm'\] match no linear layer or embedding"),
    ],
)
def test_a_target_that_is_not_there_is_named(targets, message):
    with pytest.raises(ValueError, match=message):
        LoRA(target_modules=targets).attach(tiny_model("llama"))


def test_a_shorthand_that_meets_nothing_is_named():
    with pytest.raises(ValueError, match=r"\['attention'\] match no .*; there are 0"):
        Targets("attention").find(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_a_layer_name_that_is_not_the_pattern_has_no_number():
    with pytest.raises(ValueError, match=r"layers_to_transform \[0\] are not there; layers: none"):
        Targets(["v_proj"], None, [0], "h").find(tiny_model("llama"))


def test_shorthands_are_written_as_names_and_the_rest_as_given():
    model = tiny_model("llama")
    assert Targets(["q_proj", "v_proj"]).resolved_names(model) == ["q_proj", "v_proj"]
    assert Targets(r".*\.q_proj").resolved_names(model) == r".*\.q_proj"
    names = Targets("all-linear").resolved_names(model)
    assert len(names) == 14
    assert all(name.startswith("model.layers.") for name in names)


def test_an_expression_that_meets_other_modules_too_is_written_as_names():
    written = Targets(r".*\.1\.mlp.*").resolved_names(tiny_model("llama"))
    assert written == [f"model.layers.1.mlp.{n}_proj" for n in ("gate", "up", "down")]


def test_many_names_are_written_as_the_suffixes_that_tell_them_from_the_rest():
    layers = torch.nn.ModuleList(
        torch.nn.ModuleDict({n: torch.nn.Linear(2, 2) for n in ("q_proj", "up_proj")})
        for _ in range(12)
    )
    model = torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"layers": layers})})
    for targets in (Targets("all-linear"), Targets("all-linear", None, [3, 7])):
        assert sorted(targets.resolved_names(model)) == ["q_proj", "up_proj"]


def test_suffixes_grow_until_they_are_unambiguous():
    names = ["a.0.attn.proj", "a.1.attn.proj"]
    assert shortest_suffixes(names, ["a.0.mlp.proj"]) == ["attn.proj"]
    assert shortest_suffixes(["x.y"], ["z.x.y"]) == ["x.y"]  # no suffix can tell them apart


@pytest.mark.parametrize(
    ("key", "name", "matches"),
    [
        ("q_proj", "layers.0.q_proj", True),
        ("q_proj", "q_proj", True),
        ("q_proj", "layers.0.xq_proj", False),
        ("layers.0", "layers.0.q_proj", False),
        ("^q_proj", "layers.0.q_proj", False),
        ("^layers.0.q_proj", "layers.0.q_proj", True),
        ("layers.[01].*", "model.layers.1.q_proj", True),
        ("0.q_proj|k_proj", "layers.5.k_proj", True),
    ],
)
def test_patterns_match_the_end_of_a_name_as_in_hf_peft(key, name, matches):
    from peft.utils.other import get_pattern_key

    assert (match_pattern({key: 1}, name) == 1) is matches
    assert (get_pattern_key([key], name) == key) is (matches or key == name)


def test_the_default_targets_are_hf_pefts():
    theirs = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    assert {kind: theirs[kind] for kind in BY_MODEL_TYPE} == BY_MODEL_TYPE
    encoders = {"bart", "bert", "blip-2", "deberta", "deberta-v2", "electra", "layoutlm", "mt5"}
    assert set(theirs) - set(BY_MODEL_TYPE) == encoders | {"roberta", "t5", "xlm-roberta"}


def test_an_architecture_without_default_targets_is_named():
    with pytest.raises(ValueError, match=r"no default for model type 'phi3': name .*mean phi\?"):
        Targets(None).find(tiny_model("phi3"))
