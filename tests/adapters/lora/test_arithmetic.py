"""Combined adapters against the sums that they stand for, in float64 and in HF PEFT."""

import json

import pytest
import torch
from torch.testing import assert_close

from peft_lightning.adapters import LoRA, PromptTuning, load_adapter, read_adapter, save_adapter
from peft_lightning.adapters.folder import read_facts
from peft_lightning.adapters.lora.arithmetic import as_lora, combine, reduce_rank, updates_of
from peft_lightning.adapters.lora.updates_folder import write_updates
from peft_lightning.base_model import base_fingerprint, load_base_model
from peft_lightning.commands.combine import combine as combine_command
from peft_lightning.commands.resize import resize
from rounding import assert_near
from tiny import tiny_model

LORAS = [
    LoRA(r=4, lora_alpha=7, use_rslora=True),
    LoRA(r=2, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 3},
         alpha_pattern={"q_proj": 5}),
]  # fmt: skip


def trained(adapter, seed):
    """Return a model with a random adapter, and the definition of each layer's update."""
    model = tiny_model("llama")
    adapter.attach(model)
    torch.manual_seed(seed)
    for tensor in adapter.state_dict(model).values():
        tensor.normal_()
    deltas = {
        name: layer.scaling * layer.lora_B.weight.double() @ layer.lora_A.weight.double()
        for name, layer in adapter.layers(model).items()
    }
    return model, {name: delta.detach() for name, delta in deltas.items()}


@pytest.fixture
def two():
    found = [trained(adapter, seed) for seed, adapter in enumerate(LORAS)]
    updates = [updates_of(a, a.state_dict(m)) for a, (m, _) in zip(LORAS, found, strict=True)]
    return updates, [deltas for _, deltas in found]


def weighted_sum(deltas, weights):
    total = {}
    for each, weight in zip(deltas, weights, strict=True):
        for name, delta in each.items():
            total[name] = total.get(name, 0) + weight * delta
    return total


@pytest.mark.parametrize(("method", "rank"), [("cat", None), ("svd", 16)])
def test_the_weighted_sum_of_the_updates_is_exact(two, method, rank):
    updates, deltas = two
    found, retained = combine(updates, [0.7, -1.5], method, rank)
    want = weighted_sum(deltas, [0.7, -1.5])
    assert found.keys() == want.keys()
    for name, (b, a) in found.items():
        assert_close(b @ a, want[name], rtol=1e-6, atol=1e-6)  # scalings are float
        assert retained[name] == pytest.approx(1.0)


def test_a_cut_update_is_the_nearest_of_its_rank_and_its_energy_is_told(two):
    updates, deltas = two
    found, retained = combine(updates, [1, 1], "svd", rank=3)
    for name, delta in weighted_sum(deltas, [1, 1]).items():
        u, s, v = torch.linalg.svd(delta)
        b, a = found[name]
        assert a.shape[0] == 3
        assert_close(b @ a, u[:, :3] * s[:3] @ v[:3], rtol=1e-6, atol=1e-6)
        assert retained[name] == pytest.approx(float(s[:3].square().sum() / s.square().sum()))


def test_an_energy_decides_the_lowest_rank_that_retains_it():
    torch.manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(9, 4).double())
    b, a = q * torch.tensor([2.0, 1.0, 1.0, 0.5]), torch.eye(4).double()
    for retain, rank in ((0.6, 1), (0.7, 2), (0.9, 3), (0.99, 4), (1.0, 4)):
        (_, cut), retained = reduce_rank(b, a, retain=retain)
        assert cut.shape[0] == rank
        assert retained >= retain - 1e-12


def one_by_one(values, method, density, weights):
    """TIES and magnitude pruning of a layer, a number at a time, as their papers say."""
    kept = []
    for delta, weight in zip(values, weights, strict=True):
        flat = sorted((abs(v) for v in delta.flatten().tolist()), reverse=True)
        bound = flat[round(density * len(flat)) - 1]
        kept.append([weight * v if abs(v) >= bound else 0.0 for v in delta.flatten().tolist()])
    result = []
    for column in zip(*kept, strict=True):
        if method == "magnitude_prune":
            result.append(sum(column))
            continue
        sign = 1 if sum(column) > 0 else -1
        agreeing = [v for v in column if v * sign > 0]
        result.append(sum(agreeing) / max(1, len(agreeing)))
    return torch.tensor(result, dtype=torch.float64).view_as(values[0])


@pytest.mark.parametrize("method", ["ties", "magnitude_prune"])
def test_pruned_sums_are_those_of_their_definition(method):
    found = [trained(LoRA(r=3), seed) for seed in (0, 1)]
    updates = [updates_of(LoRA(r=3), LoRA(r=3).state_dict(model)) for model, _ in found]
    got, _ = combine(updates, [1.0, 0.5], method, rank=999, density=0.3)
    for name in list(got)[:3]:
        want = one_by_one([deltas[name] for _, deltas in found], method, 0.3, [1.0, 0.5])
        b, a = got[name]
        assert_close(b @ a, want, rtol=1e-5, atol=1e-5)


def test_hf_ties_is_what_hf_peft_computes_where_the_weighted_values_elect_other_signs(tmp_path):
    from peft import PeftModel

    adapter = LoRA(r=3, target_modules=["q_proj", "down_proj"])
    for seed, name in enumerate("ab"):
        save_adapter(adapter, trained(adapter, seed)[0], tmp_path / name)
    theirs = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "a", adapter_name="a")
    theirs.load_adapter(tmp_path / "b", "b")
    theirs.add_weighted_adapter(
        ["a", "b"], [0.5, 2.0], "ab", combination_type="ties_svd", density=0.6, svd_rank=32
    )
    theirs.set_adapter("ab")
    ids, logits = torch.arange(8)[None], {}
    for method in ("ties", "hf_ties"):
        folders = f"{tmp_path}/a=0.5", f"{tmp_path}/b=2"
        combine_command(str(tmp_path / method), *folders, method=method, rank=32, density=0.6)
        model = tiny_model("llama")
        load_adapter(model, tmp_path / method)
        logits[method] = model(ids).logits
    assert_near(logits["hf_ties"], theirs(ids).logits)
    assert (logits["ties"] - logits["hf_ties"]).abs().max() > 0.1


def test_adapters_of_bases_by_two_names_are_checked_against_the_base_that_is_given(base, tmp_path):
    for name, of in (("a", "some/name"), ("b", "other/name")):
        model = load_base_model(str(base))
        model.name_or_path = of
        (adapter := LoRA(r=2, init_lora_weights=False)).attach(model)
        save_adapter(adapter, model, tmp_path / name)
    folders = [str(tmp_path / name) for name in "ab"]
    combine_command(str(tmp_path / "ab"), *folders, base_model=str(base))
    facts = read_adapter(tmp_path / "ab").facts
    assert facts["base_model"] == str(base)
    assert facts["base_fingerprint"] == base_fingerprint(load_base_model(str(base)))
    model = tiny_model("gpt2")
    model.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(
        ValueError, match=r"is of another base than .*gpt2.*_proj is \(32, [0-9]+\), .*not there"
    ):
        combine_command(str(tmp_path / "other"), *folders, base_model=str(tmp_path / "gpt2"))


def test_combined_and_resized_layers_that_hf_peft_takes_for_experts_are_written_as_parameters(
    tmp_path,
):
    layers = [f"model.layers.0.{name}" for name in ("self_attn.q_proj", "mlp.up_proj")]
    updates = {name: (torch.ones(4, 1), torch.ones(1, 3)) for name in layers}
    write_updates(str(tmp_path / "a"), updates, read_facts(tmp_path), parameters=layers[1:])
    combine_command(str(tmp_path / "aa"), str(tmp_path / "a"), str(tmp_path / "a"))
    resize(str(tmp_path / "aa"), str(tmp_path / "small"), rank=1)
    for name in ("a", "aa", "small"):
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert config["target_modules"] == layers[:1]
        assert config["target_parameters"] == [f"{layers[1]}.weight"]


def test_dare_keeps_the_sum_on_average_and_a_seed_decides_what_is_dropped(two):
    updates, deltas = two
    name = "model.layers.0.self_attn.q_proj"
    draws = [
        combine(updates, [1, 1], "dare_linear", 999, 0.5, seed)[0][name] for seed in range(300)
    ]
    mean = sum(b @ a for b, a in draws) / len(draws)
    want = weighted_sum(deltas, [1, 1])[name]
    assert (mean - want).norm() < 0.15 * want.norm()
    again = combine(updates, [1, 1], "dare_linear", 999, 0.5, 3)[0][name]
    assert_close(again[0] @ again[1], draws[3][0] @ draws[3][1])
    whole = combine(updates, [1, 1], "dare_linear", 999, 1.0)[0][name]
    assert_close(whole[0] @ whole[1], want, rtol=1e-6, atol=1e-6)


def test_hf_linear_is_what_hf_peft_calls_linear(tmp_path):
    from peft import PeftModel

    for seed, name in enumerate("ab"):
        adapter = LoRA(r=3, lora_alpha=5 + 4 * seed)
        save_adapter(adapter, trained(adapter, seed)[0], tmp_path / name)
    theirs = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "a", adapter_name="a")
    theirs.load_adapter(tmp_path / "b", "b")
    theirs.add_weighted_adapter(["a", "b"], [0.6, 0.3], "ab", combination_type="linear")
    theirs.set_adapter("ab")
    combine_command(str(tmp_path / "ab"), f"{tmp_path}/a=0.6", f"{tmp_path}/b=0.3",
                    method="hf_linear")  # fmt: skip
    ours = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "ab")
    ids = torch.arange(8)[None]
    assert_near(ours(ids).logits, theirs(ids).logits)


def test_a_combined_folder_computes_the_sum_in_hf_peft_and_says_what_it_is_made_of(
    tmp_path, two, capsys
):
    from peft import PeftModel

    _, deltas = two
    for seed, (name, adapter) in enumerate(zip("ab", LORAS, strict=True)):
        model, _ = trained(adapter, seed)
        save_adapter(adapter, model, tmp_path / name, {"base_fingerprint": {"weights": "x"}})
    combine_command(str(tmp_path / "ab"), f"{tmp_path}/a=0.5", f"{tmp_path}/b")
    assert "14 layers, rank 4 to 7" in capsys.readouterr().out
    plain = tiny_model("llama")
    with torch.no_grad():
        for name, delta in weighted_sum(deltas, [0.5, 1]).items():
            plain.get_submodule(name).weight += delta
    ids = torch.arange(8)[None]
    theirs = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "ab")
    assert_near(theirs(ids).logits, plain(ids).logits)
    _, _, facts = read_adapter(tmp_path / "ab")
    assert facts["made_of"]["adapters"] == [["a", 0.5], ["b", 1.0]]
    assert facts["base_fingerprint"] == {"weights": "x"}


def test_a_resized_folder_has_the_rank_and_the_retained_energy_is_told(tmp_path, capsys):
    model, _ = trained(LoRA(r=6), 0)
    save_adapter(LoRA(r=6), model, tmp_path / "a")
    resize(str(tmp_path / "a"), str(tmp_path / "b"), rank=2)
    assert "rank 2; retained energy" in capsys.readouterr().out
    adapter, tensors, _ = read_adapter(tmp_path / "b")
    assert adapter.r == adapter.scaling() * 2 == 2
    assert {min(t.shape) for t in tensors.values()} == {2}
    resize(str(tmp_path / "a"), str(tmp_path / "c"), retain=0.9)
    config = json.loads((tmp_path / "c" / "adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"]


def test_what_cannot_be_combined_is_named(tmp_path, two):
    updates, _ = two
    other = {name: (b, a[:, :-1]) for name, (b, a) in updates[0].items()}
    with pytest.raises(ValueError, match="updates of different shapes"):
        combine([updates[0], other], [1, 1])
    with pytest.raises(ValueError, match="hf_linear needs one rank in all adapters"):
        combine(updates, [1, 1], "hf_linear")
    with pytest.raises(ValueError, match="method must be cat, svd"):
        combine(updates, [1, 1], "linear")
    with pytest.raises(ValueError, match="density must be above 0 and at most 1, got 0"):
        combine(updates, [1, 1], "ties", density=0)
    with pytest.raises(ValueError, match="and this is PROMPT_TUNING"):
        updates_of(PromptTuning(), {})
    with pytest.raises(ValueError, match=r"not base_model\.model\.x"):
        updates_of(LoRA(), {"base_model.model.x": torch.ones(1)})
    for name, weights in (("a", "x"), ("b", "y")):
        model, _ = trained(LORAS[0], 0)
        save_adapter(LORAS[0], model, tmp_path / name, {"base_fingerprint": {"weights": weights}})
    with pytest.raises(ValueError, match="b was trained on another base model than"):
        combine_command(str(tmp_path / "c"), str(tmp_path / "a"), str(tmp_path / "b"))
    for name, base in (("d", "some/llama"), ("e", "other/llama"), ("f", "some/llama")):
        model, _ = trained(LORAS[0], 0)
        model.name_or_path = base
        save_adapter(LORAS[0], model, tmp_path / name)
    with pytest.raises(ValueError, match=r"on other/llama, and .*d on some/llama.*--base_model"):
        combine_command(str(tmp_path / "c"), str(tmp_path / "d"), str(tmp_path / "e"))
    combine_command(str(tmp_path / "c"), str(tmp_path / "d"), str(tmp_path / "f"))
    gpt2 = tiny_model("gpt2")
    (lora := LoRA(r=2, target_modules=["c_attn"])).attach(gpt2)
    save_adapter(lora, gpt2, tmp_path / "g")
    with pytest.raises(ValueError, match=r"layers in transformer\.h, and .* in model\.layers"):
        combine_command(str(tmp_path / "h"), str(tmp_path / "f"), str(tmp_path / "g"))
    with pytest.raises(ValueError, match="must be FOLDER=WEIGHT, and 'x' is no number"):
        combine_command(str(tmp_path / "i"), f"{tmp_path}/a=x")


def test_as_lora_keeps_the_updates_at_scale_1(two):
    updates, _ = two
    lora, tensors = as_lora(updates[1])
    for name, (b, a) in updates_of(lora, tensors).items():
        assert lora.scaling(name) == 1
        kept = updates[1][name][0] @ updates[1][name][1]
        assert_near(b @ a, kept, dtype=torch.float32, products=2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, "use_dora: what DoRA adds depends on the base"),
        ({"lora_bias": True}, "bias 'none', lora_bias True: trained biases are no update"),
        ({"bias": "all"}, "bias 'all', lora_bias False: trained biases"),
        ({"init_lora_weights": "pissa"}, "make it plain LoRA: load_adapter onto its base"),
    ],
)
def test_what_is_more_than_a_sum_of_updates_is_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        updates_of(LoRA(**fields), {})


def test_pissa_saved_here_is_resized_like_any_lora(tmp_path):
    adapter, model = LoRA(r=4, init_lora_weights="pissa"), tiny_model("llama")
    adapter.attach(model)
    with torch.no_grad():
        for layer in adapter.layers(model).values():
            layer.lora_B.weight += torch.randn_like(layer.lora_B.weight)
    save_adapter(adapter, model, tmp_path / "a")
    resize(str(tmp_path / "a"), str(tmp_path / "b"), rank=4)  # (B - B0) A has this rank
    before, after = (updates_of(*read_adapter(tmp_path / n)[:2]) for n in ("a", "b"))
    assert before.keys() == after.keys()
    for name, (b, a) in after.items():
        assert a.shape[0] == 4
        kept = before[name][0] @ before[name][1]
        assert_near(b @ a, kept, dtype=torch.float32)  # two decompositions


def test_combined_adapters_of_conv1d_say_so_as_hf_peft_does(tmp_path):
    model = tiny_model("gpt2")
    (adapter := LoRA(r=2, target_modules=["c_attn"], init_lora_weights=False)).attach(model)
    save_adapter(adapter, model, tmp_path / "a")
    combine_command(str(tmp_path / "both"), str(tmp_path / "a"), str(tmp_path / "a"))
    resize(str(tmp_path / "both"), str(tmp_path / "small"), rank=1)
    for name in ("a", "both", "small"):
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert config["fan_in_fan_out"] is True


def test_a_folder_with_an_equals_sign_in_its_name_is_no_weight(tmp_path):
    adapter = LORAS[0]
    model, deltas = trained(adapter, 0)
    save_adapter(adapter, model, tmp_path / "lr=0.5")
    combine_command(str(tmp_path / "out"), str(tmp_path / "lr=0.5"), f"{tmp_path / 'lr=0.5'}=-3")
    combined, tensors, _ = read_adapter(tmp_path / "out")
    for name, (b, a) in updates_of(combined, tensors).items():
        assert_near(b @ a, -2 * deltas[name], dtype=torch.float32, products=2)
    with pytest.raises(ValueError, match="must be FOLDER=WEIGHT, and 'nan' is no number"):
        combine_command(str(tmp_path / "out"), f"{tmp_path / 'lr=0.5'}=nan")


def test_a_checkpoint_that_training_continues_from_is_not_replaced(tmp_path):
    adapter = LORAS[0]
    model, _ = trained(adapter, 0)
    for name in ("last.ckpt", "adapter"):
        save_adapter(adapter, model, tmp_path / name)
    (tmp_path / "last.ckpt" / "trainer_state.pt").write_bytes(b"state")
    with pytest.raises(ValueError, match=r"trainer_state\.pt, which would be removed"):
        resize(str(tmp_path / "adapter"), str(tmp_path / "last.ckpt"), rank=1)
    assert (tmp_path / "last.ckpt" / "trainer_state.pt").read_bytes() == b"state"
