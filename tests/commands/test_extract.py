"""Extracted LoRAs against the models that they are extracted from."""

import json

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from peft_lightning.adapters import read_adapter
from peft_lightning.adapters.lora.arithmetic import factorise
from peft_lightning.base_model import load_base_model
from peft_lightning.commands.extract import extract
from rounding import assert_near
from tiny import tiny_model
from tiny_run import fit, write_base

IDS = torch.arange(10)[None]


def tuned(base, folder, changes):
    """Write ``base`` with rank-2 changes to the named parameters; return the model."""
    model = load_base_model(str(base))
    torch.manual_seed(1)
    with torch.no_grad():
        for name in changes:
            weight = model.get_parameter(name)
            if weight.ndim == 1:
                weight += 0.1
                continue
            u, _ = torch.linalg.qr(torch.randn(weight.shape[0], 2))
            v, _ = torch.linalg.qr(torch.randn(weight.shape[1], 2))
            weight += u * torch.tensor([3.0, 1.0]) @ v.T  # of energy 9 and 1
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("architecture", "layers"),
    [
        ("llama", ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "lm_head"]),
        ("gpt2", ["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"]),  # Conv1D
        ("gpt_neox", ["gpt_neox.layers.0.mlp.dense_4h_to_h"]),
    ],
)
def test_a_difference_of_low_rank_comes_back_in_hf_peft(
    architecture, layers, tmp_path, capsys, recwarn
):
    from peft import PeftModel

    base = write_base(tmp_path / "base", architecture)
    model = tuned(base, tmp_path / "tuned", [f"{name}.weight" for name in layers])
    extract(str(tmp_path / "tuned"), str(tmp_path / "a"), base_model=str(base), rank=2)
    assert "retained energy 100.00% in total, 100.00% at least" in capsys.readouterr().out
    recwarn.clear()
    theirs = PeftModel.from_pretrained(load_base_model(str(base)), tmp_path / "a")
    assert_near(theirs(IDS).logits, model(IDS).logits)
    assert not [w for w in recwarn if "fan_in_fan_out" in str(w.message)]
    adapter, _, facts = read_adapter(tmp_path / "a")
    assert sorted(adapter.target_modules) == sorted(layers)
    assert facts["base_fingerprint"]["architecture"] == type(model).__name__
    assert facts["made_of"] == {"method": "extract", "rank": 2, "retain": None, "model": "tuned"}


def test_rank_and_energy_decide_what_is_retained_and_each_layer_tells(base, tmp_path, capsys):
    names = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"]
    tuned(base, tmp_path / "tuned", [f"{name}.weight" for name in names])
    for options, rank, kept in (({"rank": 1}, 1, "90.00%"), ({"retain": 0.95}, 2, "100.00%")):
        extract(
            str(tmp_path / "tuned"),
            str(tmp_path / "a"),
            base_model=str(base),
            overwrite=True,
            **options,
        )
        lines = capsys.readouterr().out.splitlines()
        for name, line in zip(names, lines[1:3], strict=True):
            words = line.split()
            assert words[:2] == [name, str(rank)]
            assert words[-1] == kept
            assert float(words[2]) == pytest.approx(10**0.5, abs=1e-3)
        assert f"retained energy {kept} in total" in lines[3]


def test_what_a_lora_cannot_hold_is_named_and_left_out_only_if_asked(base, tmp_path, capsys):
    changes = ["model.embed_tokens.weight", "model.norm.weight"]
    tuned(base, tmp_path / "tuned", [*changes, "model.layers.0.mlp.up_proj.weight"])
    words = str(tmp_path / "tuned"), str(tmp_path / "a")
    with pytest.raises(ValueError, match=r"cannot hold 2 .*embed_tokens.* \(changed by .*norm"):
        extract(*words, base_model=str(base), rank=2)
    assert not (tmp_path / "a").exists()
    extract(*words, base_model=str(base), rank=2, ignore_other_changes=True)
    assert "left out: model.embed_tokens.weight (changed by" in capsys.readouterr().out
    facts = json.loads((tmp_path / "a" / "peft_lightning.json").read_text())
    assert facts["left_out"].keys() == set(changes)
    assert list(read_adapter(tmp_path / "a")[0].target_modules) == ["model.layers.0.mlp.up_proj"]


def test_a_checkpoint_of_full_fine_tuning_names_its_base(base, rows, tmp_path, capsys):
    from peft_lightning.adapters import Full

    fit(base, rows, tmp_path / "run", adapter=Full(), max_steps=2)
    ckpt = tmp_path / "run" / "checkpoints" / "last.ckpt"
    extract(str(ckpt), str(tmp_path / "a"), retain=0.9, ignore_other_changes=True)
    assert "retained energy 9" in capsys.readouterr().out
    facts = read_adapter(tmp_path / "a")[2]
    assert facts["base_model"] == str(base)
    write_base(tmp_path / "other")
    other = tiny_model("llama", vocab_size=260, seed=7)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="was trained on another base model"):
        extract(str(ckpt), str(tmp_path / "b"), base_model=str(tmp_path / "other"), rank=1)


def test_models_that_do_not_belong_together_are_named(base, tmp_path):
    write_base(tmp_path / "gpt2", "gpt2")
    for other, message in (
        (tmp_path / "gpt2", "is a GPT2LMHeadModel and .* a LlamaForCausalLM: not its base"),
        (base, "no linear layer .* differs"),
        (tmp_path / "none", "there is no"),
    ):
        with pytest.raises(ValueError, match=message):
            extract(str(other), str(tmp_path / "a"), base_model=str(base), rank=1)
    tiny_model("llama", vocab_size=99).save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match=r"small is not a tuned .*lm_head.* \(99, 32\) there"):
        extract(str(tmp_path / "small"), str(tmp_path / "a"), base_model=str(base), rank=1)
    with pytest.raises(ValueError, match="does not name its base model: give it with --base_model"):
        extract(str(base), str(tmp_path / "a"), rank=1)
    with pytest.raises(ValueError, match="give either --rank or --retain"):
        extract(str(base), str(tmp_path / "a"), base_model=str(base))


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_the_factors_of_a_matrix_are_those_of_its_singular_values(shape):
    torch.manual_seed(0)
    delta = torch.randn(shape).double()
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    (b, a), retained = factorise(delta, rank=4)
    assert_close(b @ a, u[:, :4] * s[:4] @ v[:4])
    assert_close(b.norm(dim=0), a.norm(dim=1))  # the root of each singular value
    assert retained == pytest.approx(float(s[:4].square().sum() / s.square().sum()))
    (b, a), retained = factorise(torch.zeros(shape).double(), rank=2)
    assert (float((b @ a).norm()), retained) == (0.0, 1.0)


def test_a_conv1d_is_said_to_be_one_though_a_linear_layer_comes_after_it(tmp_path):
    model = tiny_model("gpt2")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(tmp_path / "base")
    names = ["transformer.h.0.attn.c_attn.weight", "lm_head.weight"]
    tuned(tmp_path / "base", tmp_path / "tuned", names)
    extract(str(tmp_path / "tuned"), str(tmp_path / "a"), base_model=str(tmp_path / "base"), rank=2)
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["fan_in_fan_out"]


def test_a_weight_of_zeros_has_a_difference_too(tmp_path, capsys):
    model = tiny_model("llama")
    model.model.layers[0].mlp.down_proj.weight.data.zero_()
    model.save_pretrained(tmp_path / "base")
    tuned(tmp_path / "base", tmp_path / "tuned", ["model.layers.0.mlp.down_proj.weight"])
    extract(str(tmp_path / "tuned"), str(tmp_path / "a"), base_model=str(tmp_path / "base"), rank=2)
    assert "inf%" in capsys.readouterr().out
