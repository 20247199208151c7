"""The command check-serving: what vLLM, transformers and llama.cpp take of an adapter's folder."""

import json
import re
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from peft_lightning.adapters import Full, LoRA, PromptTuning, save_adapter
from peft_lightning.base_model import base_fingerprint, load_base_model, resolve
from peft_lightning.commands.check_serving import check_serving
from peft_lightning.export import loaded_serving
from peft_lightning.export.serving import VLLM_RANKS
from tiny import tiny_model
from tiny_gguf import digit_tokenizer
from tiny_run import byte_tokenizer, write_base


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    monkeypatch.setattr(resolve, "hub_answers", lambda: False)


def verdicts(base, folder, adapter, capsys):
    model = load_base_model(str(base), frozen=False)
    adapter.attach(model)
    save_adapter(adapter, model, folder, {}, byte_tokenizer())
    check_serving(str(folder), json=True)
    return json.loads(capsys.readouterr().out)


def test_a_plain_lora_of_a_llama_is_taken_by_all(base, tmp_path, capsys):
    found = verdicts(base, tmp_path, LoRA(r=10, init_lora_weights=False), capsys)
    assert {name: v["accepted"] for name, v in found.items()} == {
        "vllm": True,
        "transformers": True,
        "llama.cpp": True,
    }
    assert found["vllm"]["notes"] == ["--enable-lora --max-lora-rank 16"]
    assert [v["by"] for v in found.values()][:2] == ["rules", "loaded"]
    assert re.search(r"logits of 24 tokens are ours to \de-0[6-9]", str(found["transformers"]))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """A base with a dense layer and a layer of experts, and an adapter of its dense layers."""
    place = tmp_path_factory.mktemp("mixture")
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    config = Qwen3MoeConfig(**sizes, **heads, **experts, mlp_only_layers=[0], pad_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(place / "base")
    model = load_base_model(str(place / "base"))
    (adapter := LoRA(r=2, target_modules="mlp", init_lora_weights=False)).attach(model)
    save_adapter(adapter, model, place / "ckpt")
    return place


def test_a_folder_is_loaded_by_hf_peft_and_its_logits_decide(mixture, tmp_path, capsys):
    check_serving(str(mixture / "ckpt"))
    assert "transformers: yes, loaded" in capsys.readouterr().out
    folder = shutil.copytree(mixture / "ckpt", tmp_path / "ckpt")
    config = json.loads((folder / "adapter_config.json").read_text())
    names = [name.removesuffix(".weight") for name in config["target_parameters"]]
    changed = config | {"target_modules": names, "target_parameters": None}
    (folder / "adapter_config.json").write_text(json.dumps(changed))
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    check_serving(str(folder))
    said = capsys.readouterr().out
    assert "transformers: no, loaded" in said
    assert "computes something else" in said
    assert "load_adapter(CKPT)" not in said
    check_serving(str(folder), load=False)
    said = capsys.readouterr().out
    assert "transformers: no, by its rules" in said
    assert "mlp.gate_proj" in said
    assert "of a qwen3_moe for experts" in said
    check_serving(str(mixture / "ckpt"), load=False)
    assert "transformers: yes, by its rules" in capsys.readouterr().out


@pytest.mark.llama
def test_a_folder_is_loaded_by_llama_cpp_and_its_logits_decide(tmp_path, capsys):
    pytest.importorskip("llama_cpp", exc_type=ImportError)
    base, adapter = tmp_path / "base", LoRA(r=8, init_lora_weights=False)
    tiny_model("llama", vocab_size=len(digit_tokenizer())).save_pretrained(base)
    digit_tokenizer().save_pretrained(base)
    found = verdicts(base, tmp_path / "ckpt", adapter, capsys)["llama.cpp"]
    assert found["by"] == "loaded"
    assert found["accepted"]
    assert "logits of 24 tokens are ours" in found["notes"][-1]


@pytest.mark.parametrize(
    ("adapter", "fits"),
    [
        (LoRA(r=8, use_rslora=True), True),
        (LoRA(r=8, rank_pattern={"q_proj": 4}, alpha_pattern={"q_proj": 16}), True),
        (LoRA(r=8, rank_pattern={"q_proj": 4}), False),
        (LoRA(r=8, alpha_pattern={"q_proj": 4}), False),
        (LoRA(r=8, rank_pattern={"proj": 4}, alpha_pattern={r"\w*proj": 16}), None),
    ],
)
def test_vllm_takes_one_scale_for_all_layers(base, tmp_path, capsys, adapter, fits):
    if fits is None:  # a pattern that matches nothing is no adapter at all
        with pytest.raises(ValueError, match="matches no targeted layer"):
            verdicts(base, tmp_path, adapter, capsys)
        return
    found = verdicts(base, tmp_path, adapter, capsys)
    assert found["vllm"]["accepted"] == fits
    assert found["llama.cpp"]["accepted"]
    assert fits or "ignores rank_pattern and alpha_pattern" in found["vllm"]["problems"][0]


def test_lora_on_an_embedding_is_for_transformers(base, tmp_path, capsys):
    found = verdicts(base, tmp_path, LoRA(target_modules=["q_proj", "embed_tokens"]), capsys)
    assert {name: v["accepted"] for name, v in found.items()} == {
        "vllm": False,
        "transformers": True,
        "llama.cpp": False,
    }
    assert "LoRA on an embedding, model.embed_tokens, is not" in found["vllm"]["problems"][0]


def test_new_tokens_need_a_resized_base(base, tmp_path, capsys):
    adapter = LoRA(new_tokens=["<call>"]).with_tokenizer(byte_tokenizer())
    found = verdicts(base, tmp_path, adapter, capsys)
    assert "trained tokens are not taken" in found["vllm"]["problems"][0]
    assert "resize_token_embeddings(len(tokenizer))" in found["transformers"]["notes"][1]
    assert "its 1 new tokens" in found["transformers"]["notes"][1]


def test_the_largest_rank_decides(base, tmp_path, capsys):
    largest = LoRA(r=8, rank_pattern={"q_proj": 40}, alpha_pattern={"q_proj": 160})
    assert "rank 64" in verdicts(base, tmp_path / "a", largest, capsys)["vllm"]["notes"][0]
    found = verdicts(base, tmp_path / "b", LoRA(r=VLLM_RANKS[-1] + 1), capsys)["vllm"]
    assert "rank 513 is above vLLM's largest, 512" in found["problems"][0]


def test_a_prompt_is_for_transformers_only(base, tmp_path, capsys):
    found = verdicts(base, tmp_path, PromptTuning(num_virtual_tokens=2), capsys)
    assert [name for name, v in found.items() if v["accepted"]] == ["transformers"]
    assert "serve it with transformers" in found["vllm"]["problems"][0]


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
def test_architectures_without_lora_are_named(architecture, tmp_path, capsys):
    base = write_base(tmp_path / "base", architecture)
    found = verdicts(base, tmp_path / "ckpt", LoRA(r=8), capsys)
    assert f"it serves {architecture} without LoRA" in found["vllm"]["problems"][0]
    assert not found["llama.cpp"]["problems"]  # which knows them


def test_a_tied_head_is_nothing_for_llama(tmp_path, capsys):
    base = write_base(tmp_path / "base", "qwen2")
    found = verdicts(base, tmp_path / "ckpt", LoRA(r=8, target_modules=["lm_head"]), capsys)
    assert "is tied" in found["llama.cpp"]["problems"][0]


def test_what_hf_peft_adds_to_lora_is_named(base, tmp_path, capsys):
    options = {"use_dora": True, "modules_to_save": ["lm_head"], "bias": "lora_only"}
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **options)
    model = tiny_model("llama", torch.float32, vocab_size=len(byte_tokenizer()))
    model.name_or_path = model.config.name_or_path = str(base)
    get_peft_model(model, config).save_pretrained(tmp_path)
    check_serving(str(tmp_path), base_model=str(base))
    said = capsys.readouterr().out
    for part in (
        "vllm: no, by its rules",
        "DoRA",
        "modules_to_save ['lm_head'] must be none",
        "biases",
    ):
        assert part in said
    assert "transformers: yes, loaded" in said
    assert "--max-lora-rank" not in said  # no way to serve what is not served


def test_what_transformers_own_load_adapter_loses_is_said(base, tmp_path, capsys):
    found = verdicts(base, tmp_path / "a", LoRA(r=8, init_lora_weights=False), capsys)
    assert found["transformers"]["notes"][-1].endswith("from_pretrained(CKPT), too")
    dora = LoRA(r=8, init_lora_weights=False, use_dora=True)
    model = load_base_model(str(base))
    dora.attach(model)
    for name, tensor in dora.state_dict(model).items():
        tensor.mul_(1.5 if "magnitude" in name else 1)
    save_adapter(dora, model, tmp_path / "b")
    check_serving(str(tmp_path / "b"))
    said = capsys.readouterr().out
    assert "transformers: yes, loaded" in said
    assert "PeftModel.from_pretrained(base, CKPT), or AutoPeft" in said
    assert re.search(r"not by model.load_adapter.* computes something else: a logit differs", said)


def test_a_folder_whose_base_hf_peft_has_changed_is_named(base, tmp_path, capsys):
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights="pissa")
    model = tiny_model("llama", torch.float32, vocab_size=len(byte_tokenizer()))
    get_peft_model(model, config).save_pretrained(tmp_path)
    check_serving(str(tmp_path), base_model=str(base))
    said = capsys.readouterr().out
    assert "vllm: no" in said
    assert "init_lora_weights pissa: it does not know that the base was changed" in said


def test_a_base_that_is_not_there_is_said_not_to_be_checked(base, tmp_path, capsys):
    verdicts(base, tmp_path, LoRA(r=8), capsys)
    check_serving(str(tmp_path), base_model="no/such")
    said = capsys.readouterr().out
    assert "its architecture was not checked" in said
    assert said.count("not known, as its rules find nothing against it") == 3
    assert "yes" not in said


def test_what_cannot_be_loaded_here_is_not_said_to_be_served_by_others(base, tmp_path, capsys):
    model, adapter, ckpt = load_base_model(str(base)), LoRA(r=8), tmp_path / "ckpt"
    facts = {"base_fingerprint": base_fingerprint(model)}
    adapter.attach(model)
    save_adapter(adapter, model, ckpt, facts, byte_tokenizer())
    check_serving(str(ckpt), base_model=str(write_base(tmp_path / "other", "qwen2")))
    said = capsys.readouterr().out
    assert said.count("not known, as it could not be loaded here") == 3
    assert "it was not loaded: " in said
    assert "--max-lora-rank" not in said


def test_a_base_that_memory_does_not_hold_is_not_loaded_and_judged_by_the_rules(
    base, tmp_path, capsys, monkeypatch
):
    verdicts(base, tmp_path, LoRA(r=8), capsys)
    monkeypatch.setattr(loaded_serving, "available_memory", lambda: 1000)
    check_serving(str(tmp_path))
    said = capsys.readouterr().out
    assert said.count("yes, by its rules") == 3
    assert "it was not loaded: the base takes 0.0 GiB in float32, and 0.0 GiB of mem" in said


def test_the_head_of_a_gpt_neox_is_said_to_be_for_transformers_5(tmp_path, capsys):
    base = write_base(tmp_path / "base", "gpt_neox")
    found = verdicts(base, tmp_path / "a", LoRA(target_modules=["lm_head"]), capsys)
    assert "in 4.x the head of a gpt_neox is embed_out" in found["transformers"]["notes"][1]
    found = verdicts(base, tmp_path / "b", LoRA(target_modules=["query_key_value"]), capsys)
    assert "embed_out" not in str(found)


def test_a_whole_model_is_said_to_be_one(base, tmp_path, capsys):
    model = load_base_model(str(base), frozen=False)
    Full().attach(model)
    save_adapter(Full(), model, tmp_path, {}, byte_tokenizer())
    check_serving(str(tmp_path))
    assert "is a whole model" in capsys.readouterr().out
    check_serving(str(base))  # such as a merged one
    assert "is a whole model" in capsys.readouterr().out


def test_a_folder_without_an_adapter_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no adapter folder"):
        check_serving(str(tmp_path))


def test_options_that_the_file_leaves_out_have_hf_pefts_defaults(base, tmp_path, capsys):
    verdicts(base, tmp_path, LoRA(r=8, lora_alpha=8), capsys)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    del config["r"], config["lora_alpha"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    check_serving(str(tmp_path), json=True)
    damaged = json.loads(capsys.readouterr().out)["vllm"]  # as its checksums say
    assert damaged["accepted"] is None
    (tmp_path / "SHA256SUMS").unlink()
    check_serving(str(tmp_path), json=True)
    assert json.loads(capsys.readouterr().out)["vllm"]["accepted"]
