"""Loading a base model, and knowing it again."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from peft_lightning.adapters import LoRA, PromptTuning
from peft_lightning.base_model import base_fingerprint, load_base_model, load_tokenizer, resolve
from rounding import assert_near
from tiny import ARCHITECTURES, tiny_model
from tiny_gguf import digit_tokenizer, write_gguf
from tiny_run import write_base

IDS = torch.arange(4, 15)[None]


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    monkeypatch.setattr(resolve, "hub_answers", lambda: False)


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    model = tiny_model("llama", vocab_size=len(digit_tokenizer()))
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model)


# ---- what is loaded ---------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_saved_model_is_loaded_frozen_and_in_eval_mode(architecture, tmp_path):
    saved = tiny_model(architecture)
    saved.save_pretrained(tmp_path)
    model = load_base_model(str(tmp_path))
    assert torch.equal(model(IDS).logits, saved(IDS).logits)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_every_weight_can_be_trained_if_asked(base):
    model = load_base_model(str(base), frozen=False)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_have_the_dtype_that_is_asked_for(base, dtype):
    model = load_base_model(str(base), dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}


def test_saved_is_the_dtype_that_was_saved(tmp_path):
    write_base(tmp_path, dtype=torch.bfloat16)
    assert load_base_model(str(tmp_path), dtype="saved").dtype == torch.bfloat16


def test_tied_weights_are_one_tensor(tmp_path):
    tiny_model("qwen2").save_pretrained(tmp_path)
    model = load_base_model(str(tmp_path), dtype="bfloat16")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_the_attention_that_is_named_is_used(base):
    model = load_base_model(str(base), attn_implementation="eager")
    assert model.config._attn_implementation == "eager"


def test_a_path_under_the_home_folder_is_found(base, monkeypatch):
    monkeypatch.setenv("HOME", str(base.parent))
    assert load_base_model(f"~/{base.name}").dtype == torch.float32
    assert load_tokenizer(f"~/{base.name}").eos_token == "<|im_end|>"


# ---- GGUF -------------------------------------------------------------------------------------


def test_a_gguf_file_computes_the_logits_of_the_model_it_was_made_from(gguf_file):
    model = load_base_model(str(gguf_file))
    want = tiny_model("llama", vocab_size=len(digit_tokenizer()))
    assert_near(model(IDS).logits, want(IDS).logits)
    assert not any(p.requires_grad for p in model.parameters())


def test_a_gguf_model_can_be_saved_as_a_plain_folder(gguf_file, tmp_path):
    model = load_base_model(str(gguf_file), dtype="bfloat16")
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_a_gguf_model_remembers_the_file_it_came_from(gguf_file):
    assert load_base_model(str(gguf_file)).name_or_path == str(gguf_file)


def test_a_gguf_tokenizer_is_the_one_it_was_made_from(gguf_file):
    tokenizer, want = load_tokenizer(str(gguf_file)), digit_tokenizer()
    text = (
        "a  23\n   4<|im_end|>"  # two spaces before a digit are one token only if it is split off
    )
    assert tokenizer(text)["input_ids"] == want(text)["input_ids"]
    turns = [{"role": "user", "content": "a  b"}]
    ids = tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
    assert ids == want.apply_chat_template(turns, return_dict=True)["input_ids"]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<pad>")


def test_a_gguf_tokenizer_keeps_digits_together_if_the_model_was_trained_so(tmp_path):
    model = tiny_model("llama", vocab_size=len(digit_tokenizer()))
    tokenizer = load_tokenizer(str(write_gguf(tmp_path / "tiny.gguf", model, pre="gpt-2")))
    splits = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("  23")
    assert [piece for piece, _ in splits] == ["Ġ", "Ġ23"]


# ---- what cannot be loaded --------------------------------------------------------------------


def test_an_unknown_dtype_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"float16, got 'bf16'; did you mean bfloat16\?"):
        load_base_model("any", dtype="bf16")


@pytest.mark.parametrize("load", [load_base_model, load_tokenizer])
def test_a_path_that_is_not_there_is_named_with_the_nearest(base, load):
    near = base.parent / (base.name + "s")
    with pytest.raises(ValueError, match=f"there is no {near}; did you mean {base}"):
        load(str(near))


@pytest.mark.parametrize("load", [load_base_model, load_tokenizer])
def test_without_a_hub_a_hub_id_is_an_error_that_says_so(load):
    with pytest.raises(ValueError, match="owner/model: it is no local folder, and no model hub"):
        load("owner/model")


def test_without_a_hub_the_folder_that_was_fetched_is_named(tmp_path, monkeypatch):
    fetched = tmp_path / "peft_lightning" / "models" / "SmolLM2-135M-Instruct"
    fetched.mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=f"did you mean {fetched}"):
        load_base_model("HuggingFaceTB/SmolLM2-135M-Instruct")


def test_a_hub_that_cannot_be_reached_is_noticed_at_once(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.undo()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    resolve.hub_answers.cache_clear()
    assert resolve.hub_answers() is False
    resolve.hub_answers.cache_clear()


def test_an_empty_folder_is_said_to_hold_no_model(tmp_path):
    with pytest.raises(ValueError, match=r"holds no model, it has no config.json: it needs"):
        load_base_model(str(tmp_path))


def test_a_folder_with_a_gguf_file_asks_for_the_file(gguf_file):
    with pytest.raises(ValueError, match=f"give the file, {gguf_file}"):
        load_base_model(str(gguf_file.parent))


def test_a_folder_without_weights_is_said_to_have_none(base, tmp_path):
    (tmp_path / "config.json").write_bytes((base / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"it has no weights: it needs config.json and model"):
        load_base_model(str(tmp_path))


def test_an_adapters_folder_is_no_base_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="an adapter's folder: the base model is the one it was"):
        load_base_model(str(tmp_path))


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_text("no")
    with pytest.raises(ValueError, match=r"cannot load the base model .*magic"):
        load_base_model(str(file))
    with pytest.raises(ValueError, match=r"is a file: give a model's folder, a .gguf file or"):
        load_base_model(str(file.rename(tmp_path / "model.bin")))


def changed(base: Path, folder: Path, **config) -> Path:
    """Copy a base folder with other entries in its config."""
    for file in base.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    content = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def test_an_invalid_generation_config_is_mended_and_said(base, tmp_path, capsys):
    folder = changed(base, tmp_path)
    bad = {"eos_token_id": [4, 5], "max_new_tokens": 0, "top_k": 20}
    (folder / "generation_config.json").write_text(json.dumps(bad))
    with pytest.raises(ValueError, match="max_new_tokens"):
        AutoModelForCausalLM.from_pretrained(folder)
    found = load_base_model(str(folder)).generation_config
    assert (found.eos_token_id, found.max_new_tokens, found.top_k) == ([4, 5], None, 20)
    said = "is not valid, and is read without max_new_tokens 0 (`max_new_tokens` must be greater"
    assert said in capsys.readouterr().err


def test_damaged_weights_are_named(base, tmp_path):
    folder = changed(base, tmp_path)
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=f"cannot load the base model {folder}: .*header"):
        load_base_model(str(folder))


def test_a_missing_weight_is_an_error_and_not_random(base, tmp_path):
    folder = changed(base, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of LlamaForCausalLM, .*1.mlp.up_proj"):
        load_base_model(str(folder))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "t5", "architectures": ["T5Model"]}, "is T5Model, an encoder-decoder"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "a masked language model"),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "is ViTModel, no language model"),
        ({"model_type": "llamma"}, "cannot load the base model .*`llamma`"),
        (
            {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}},
            "brings code of its own: if you trust that, set trust_remote_code to true",
        ),
    ],
)
def test_a_model_that_is_no_causal_lm_is_refused(base, tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        load_base_model(str(changed(base, tmp_path, **config)))


def test_an_unknown_attention_is_named_with_those_there_are(base):
    with pytest.raises(ValueError, match=r"sdpaa.* is not supported.*=sdpa"):
        load_base_model(str(base), attn_implementation="sdpaa")


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"cannot load the tokenizer of .*no tokenizer.json"):
        load_tokenizer(str(tmp_path))


# ---- fingerprint ------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2"])
def test_an_empty_tokenizer_that_transformers_makes_of_nothing_is_an_error(architecture, tmp_path):
    tiny_model(architecture).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no tokenizer: .*tokenizer.json\) is not there"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("adapter", [LoRA(r=2), PromptTuning(num_virtual_tokens=3)])
def test_an_adapter_does_not_change_the_fingerprint(architecture, adapter):
    model = tiny_model(architecture)
    before = base_fingerprint(model)
    assert before["parameters"] == sum(p.numel() for p in model.parameters())
    adapter.attach(model)
    assert base_fingerprint(model) == before
    adapter.detach(model)
    assert base_fingerprint(model) == before


def test_the_fingerprint_is_the_same_in_every_dtype(tmp_path):
    write_base(tmp_path, dtype=torch.bfloat16)
    prints = [
        base_fingerprint(load_base_model(str(tmp_path), dtype=dtype))
        for dtype in ("bfloat16", "float32", "float16")
    ]
    assert prints[0] == prints[1] == prints[2]


def test_tiny_weights_do_not_change_the_fingerprint_in_float16():
    weights = torch.logspace(-12, 0, 64).bfloat16()  # from below float16's smallest number to 1
    layer = torch.nn.Sequential(torch.nn.Linear(64, 1, bias=False))
    layer[0].weight.data = weights[None]
    before = base_fingerprint(layer)["weights"]
    assert base_fingerprint(layer.half())["weights"] == before


def test_a_change_of_one_layer_changes_the_fingerprint():
    model = tiny_model("llama")
    before = base_fingerprint(model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    after = base_fingerprint(model)
    assert after["weights"] != before["weights"]
    assert after["shapes"] == before["shapes"]


def test_another_shape_or_architecture_changes_the_fingerprint():
    llama, wide = tiny_model("llama"), tiny_model("llama", vocab_size=130)
    assert base_fingerprint(wide)["shapes"] != base_fingerprint(llama)["shapes"]
    assert base_fingerprint(tiny_model("gpt2"))["architecture"] == "GPT2LMHeadModel"


def test_a_trained_bias_does_not_change_the_fingerprint_of_its_base():
    model = tiny_model("gpt2")
    before = base_fingerprint(model)
    LoRA(target_modules=["c_attn"], bias="all").attach(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += parameter.requires_grad
    assert base_fingerprint(model) == before
