"""The command inspect, against numbers that are computed independently."""

import json
import math

import pytest
import torch

from peft_lightning.adapters import Full, LoRA, PromptTuning, save_adapter
from peft_lightning.adapters.inspect import layer_facts, nearest_tokens
from peft_lightning.base_model import load_base_model
from peft_lightning.commands.inspect import _position, inspect
from tiny import tiny_model
from tiny_run import fit


def looked_at(capsys, folder, **options):
    inspect(str(folder), json=True, **options)
    return json.loads(capsys.readouterr().out)


def test_a_checkpoint_tells_its_step_its_options_and_every_updates_size(
    base, rows, tmp_path, capsys
):
    adapter = LoRA(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"], use_rslora=True)
    trainer = fit(base, rows, tmp_path / "run", adapter=adapter, max_steps=3)
    capsys.readouterr()  # the training's own output
    folder = tmp_path / "run" / "checkpoints" / "last.ckpt"
    found = looked_at(capsys, folder)
    assert found["method"] == "LORA"
    assert found["checkpoint"]["step"] == 3
    assert found["options"]["use_rslora"] is True
    assert found["holds_base_weights"] == []
    assert found["base_fingerprint"]["architecture"] == "LlamaForCausalLM"
    assert found["files"]["adapter_model.safetensors"] > found["tensors"]["bytes"]
    layers = adapter.layers(trainer.lightning_module.model)
    assert found["layers"].keys() == layers.keys()
    for name, layer in layers.items():
        delta = (layer.lora_B.weight.double() @ layer.lora_A.weight.double()) * 5 / math.sqrt(3)
        assert found["layers"][name]["norm"] == pytest.approx(float(delta.norm()), rel=1e-6)
        assert found["layers"][name]["r"] == 3
    inspect(str(folder))
    text = capsys.readouterr().out
    batches = found["checkpoint"]["data"]["batches_per_epoch"]
    assert f"step 3, epoch 0: 3 of {batches} batches finished\n" in text
    assert f"{rows}, hash {found['checkpoint']['data']['data_hash'][:12]}\n" in text
    assert "limited" not in text
    weights = found["base_fingerprint"]["weights"]
    assert "fingerprint   architecture LlamaForCausalLM, parameters" in text
    assert f"weights {weights[:12]}" in text
    assert "q_proj" in text
    assert "model.layers.1" not in text
    inspect(str(folder), all=True)
    assert "model.layers.1.mlp.down_proj" in capsys.readouterr().out


def test_the_place_in_the_data_is_said_in_words():
    data = {"epoch": 2, "finished_batches": 5, "batches_per_epoch": 9}
    data |= {"skipped": 16, "limited": True}
    assert _position({"epoch": 2, "data": data}) == (
        "epoch 2: 5 of 9 batches finished, and before them 16 rows in batches of another size; "
        "trainer.limit_train_batches limits the epoch"
    )
    assert _position({"epoch": 2, "data": {}}) == "epoch 2"


def test_what_is_more_than_updates_still_tells_the_updates(tmp_path, capsys):
    model, adapter = tiny_model("gpt2"), LoRA(r=2, use_dora=True, bias="all")
    adapter.attach(model)
    for tensor in adapter.state_dict(model).values():
        tensor.normal_()
    save_adapter(adapter, model, tmp_path / "a")
    found = looked_at(capsys, tmp_path / "a")
    assert found["options"]["use_dora"] is True
    assert found["options"]["bias"] == "all"
    for name, layer in adapter.layers(model).items():
        delta = layer.lora_B.weight.detach() @ layer.lora_A.weight.detach() * 16
        assert found["layers"][name]["norm"] == pytest.approx(float(delta.norm()), rel=1e-5)


def test_the_effective_rank_is_that_of_the_entropy_of_the_singular_values():
    torch.manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(7, 3).double())
    p, _ = torch.linalg.qr(torch.randn(5, 3).double())
    facts = layer_facts(q * 2, p.T)
    assert facts["effective_rank"] == pytest.approx(3)
    assert facts["norm"] == pytest.approx(2 * math.sqrt(3))
    assert facts["first_share"] == pytest.approx(1 / 3)
    facts = layer_facts(q * torch.tensor([3.0, 1.0, 0.0]), p.T)
    assert facts["effective_rank"] == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    )
    assert layer_facts(q * 0, p.T)["effective_rank"] == 0


def test_each_virtual_token_tells_its_norm_and_the_nearest_tokens(base, tmp_path, capsys):
    model, adapter = load_base_model(str(base)), PromptTuning(num_virtual_tokens=3)
    embeddings = model.get_input_embeddings().weight.clone()
    adapter.attach(model)
    prompt = adapter.state_dict(model)["prompt_embeddings"]
    prompt.copy_(2 * embeddings[[70, 80, 90]])
    save_adapter(adapter, model, tmp_path / "soft")
    assert [ids[0] for ids in nearest_tokens(prompt, embeddings)] == [70, 80, 90]
    found = looked_at(capsys, tmp_path / "soft", base_model=str(base))
    for token, row in zip(found["virtual_tokens"], prompt, strict=True):
        assert token["norm"] == pytest.approx(float(row.norm()), rel=1e-5)
        assert len(token["nearest"]) == 3


def test_tensors_of_the_base_are_found_in_hf_pefts_folders(tmp_path, capsys):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["lm_head", "q_proj"]))
    model.save_pretrained(tmp_path / "a", save_embedding_layers=True)
    with pytest.raises(RuntimeError, match=r"holds weights of its base, .*lm_head"):
        inspect(str(tmp_path / "a"), json=True)
    found = json.loads(capsys.readouterr().out)
    assert any("lm_head" in name for name in found["holds_base_weights"])
    with pytest.raises(RuntimeError, match="holds weights of its base"):
        inspect(str(tmp_path / "a"))
    assert "BASE WEIGHTS" in capsys.readouterr().out


def test_a_head_that_is_trained_whole_is_the_adapters_own(tmp_path, capsys):
    model = tiny_model("llama")
    adapter = LoRA(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    adapter.attach(model)
    save_adapter(adapter, model, tmp_path)
    found = looked_at(capsys, tmp_path)
    assert found["holds_base_weights"] == []
    assert len(found["layers"]) == 2


def test_a_method_that_is_not_known_here_still_shows_its_tensors(tmp_path, capsys):
    from peft import VeraConfig, get_peft_model

    config = VeraConfig(r=2, target_modules=["k_proj"], projection_prng_key=0)
    get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path / "a")
    found = looked_at(capsys, tmp_path / "a")
    assert found["method"] == "VERA"
    assert found["not_read"].startswith("peft_type 'VERA' is not known here; there are")
    assert found["tensors"]["count"] == 6  # two vectors in each of two layers, and what they share


def test_a_whole_model_and_what_is_no_adapter_are_told_apart(tmp_path, capsys):
    model = tiny_model("llama")
    Full().attach(model)
    save_adapter(Full(), model, tmp_path / "full")
    assert looked_at(capsys, tmp_path / "full")["method"] == "FULL"
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"is no adapter folder: no adapter_config\.json"):
        inspect(str(tmp_path / "empty"))
    (tmp_path / "empty" / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        inspect(str(tmp_path / "empty"))


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_that_are_trained_whole_as_one_are_the_adapters_own(tied, tmp_path, capsys):
    model = tiny_model("qwen2")
    adapter = LoRA(modules_to_save=["lm_head"], ensure_weight_tying=tied)
    adapter.attach(model)
    save_adapter(adapter, model, tmp_path)
    assert looked_at(capsys, tmp_path)["holds_base_weights"] == []


def test_the_folder_of_a_run_or_of_a_model_is_known_and_the_right_one_named(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    checkpoint.mkdir(parents=True)
    (checkpoint / "adapter_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=f"the folder of a run: .*{checkpoint}"):
        inspect(str(tmp_path / "run"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="a whole model: give it as --base_model"):
        inspect(str(tmp_path))
