"""GGUF files of architectures that are not laid out as Llama, and files in fewer bits."""

import gguf
import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import AutoConfig, FalconConfig, GPT2Config, GPTNeoXConfig

from gguf_bases import CONFIGS, FALCON, IDS, PLAIN, READ_BY_TRANSFORMERS, write_adapter, write_base
from peft_lightning.adapters import LoRA, load_adapter
from peft_lightning.base_model import load_base_model, resolve
from peft_lightning.commands.export import export
from peft_lightning.export import llama_cpp
from peft_lightning.export.gguf_layout import Layout

ROW = [5, 9, 30, 77, 120, *range(20, 40)]
NEAR = 0.01  # of logits with a deviation of 1: GELU of llama.cpp is a table in float16


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    monkeypatch.setattr(resolve, "hub_answers", lambda: False)


def tensors(file):
    return {t.name: t for t in gguf.GGUFReader(file).tensors}


@pytest.mark.parametrize("name", READ_BY_TRANSFORMERS)
def test_transformers_computes_from_the_file_what_base_and_adapter_do(name, tmp_path, capsys):
    base = write_base(tmp_path / "base", CONFIGS[name])
    ckpt = write_adapter(base, tmp_path / "ckpt", LoRA(r=4))
    export(str(ckpt), str(tmp_path / "m.gguf"), type="model", text=None)
    assert "verified on " in capsys.readouterr().out


@pytest.mark.skipif(llama_cpp.is_installed(), reason="llama.cpp verifies them")
@pytest.mark.parametrize("name", ["granite", "gpt_neox"])
def test_what_transformers_cannot_read_is_said_to_be_unverified(name, tmp_path, capsys):
    base = write_base(tmp_path / "base", CONFIGS[name])
    export(str(base), str(tmp_path / "m.gguf"), type="model")
    said = f"not verified: transformers does not read all of a {name} GGUF file; llama.cpp itself"
    assert said in capsys.readouterr().out


def test_queries_keys_and_values_are_taken_apart():
    heads, d = 4, 8
    layout = Layout(GPTNeoXConfig(**PLAIN))
    rows = torch.arange(3 * heads * d)[:, None]
    found = layout.ordered("gpt_neox.layers.0.attention.query_key_value", rows)
    want = [h * 3 * d + part * d + i for part in range(3) for h in range(heads) for i in range(d)]
    assert found[:, 0].tolist() == want
    # two groups, each of two heads that share a key and a value
    layout = Layout(FalconConfig(**FALCON, num_kv_heads=2, new_decoder_architecture=True))
    found = layout.ordered("transformer.h.0.self_attention.query_key_value", rows[: 8 * d])
    order = [0, 1, 4, 5, 2, 6, 3, 7]
    assert found[:, 0].tolist() == [part * d + i for part in order for i in range(d)]


def test_the_ones_that_gemmas_norms_add_are_in_the_file_and_gpt2s_weights_are_turned(tmp_path):
    base = write_base(tmp_path / "gemma", CONFIGS["gemma2"])
    export(str(base), str(tmp_path / "m.gguf"), type="model", verify=False)
    own = load_base_model(str(base)).state_dict()["model.layers.1.pre_feedforward_layernorm.weight"]
    assert_close(torch.tensor(tensors(tmp_path / "m.gguf")["blk.1.ffn_norm.weight"].data), own + 1)
    base = write_base(tmp_path / "gpt2", CONFIGS["gpt2"])
    export(str(base), str(tmp_path / "n.gguf"), type="model", verify=False)
    own = load_base_model(str(base)).state_dict()["transformer.h.2.mlp.c_fc.weight"]
    assert torch.equal(
        torch.tensor(tensors(tmp_path / "n.gguf")["blk.2.ffn_up.weight"].data), own.T
    )


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gemma2", {"query_pre_attn_scalar": 9}, "no gemma2 with query_pre_attn_scalar 9"),
        ("gemma2", {"final_logit_softcapping": None}, "final_logit_softcapping None"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}, r"no_rope_layers \[1, 1, 1, 1\]"),
        ("falcon", {"alibi": True}, "no falcon with alibi True"),
        ("gpt2", {"activation_function": "relu"}, "no gpt2 with relu"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("olmo2", {"attention_bias": True}, "no olmo2 with attention_bias True"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_named(name, change, message):
    config = AutoConfig.for_model(**{**CONFIGS[name].to_dict(), **change})
    with pytest.raises(ValueError, match=message):
        Layout(config)


def test_an_output_embedding_that_llama_cpp_has_not_is_refused(tmp_path):
    base = write_base(tmp_path / "base", CONFIGS["gemma2"])
    ckpt = write_adapter(base, tmp_path / "ckpt", LoRA(r=2, target_modules=["lm_head"]))
    with pytest.raises(ValueError, match="no gemma2 with an output embedding of its own"):
        export(str(ckpt), str(tmp_path / "m.gguf"), type="model", verify=False)


# ---- fewer bits -------------------------------------------------------------------------------


def test_q8_0_has_one_scale_for_each_32_values(tmp_path):
    base = write_base(tmp_path / "base", CONFIGS["gpt2"])  # whose down projection has rows of 128
    export(str(base), str(tmp_path / "m.gguf"), type="model", dtype="q8_0", verify=False)
    found = tensors(tmp_path / "m.gguf")["blk.0.ffn_down.weight"]
    own = load_base_model(str(base)).state_dict()["transformer.h.0.mlp.c_proj.weight"].T
    assert found.tensor_type.name == "Q8_0"
    read = torch.tensor(gguf.quants.dequantize(found.data, found.tensor_type))
    largest = own.unflatten(1, (-1, 32)).abs().amax(2, keepdim=True)
    errors = (read - own).unflatten(1, (-1, 32)).abs()
    assert (errors <= largest / 127 * (0.5 + 2**-4)).all()  # the scale itself is in float16
    kinds = {t.tensor_type.name for n, t in tensors(tmp_path / "m.gguf").items() if "norm" in n}
    assert kinds == {"F32"}
    assert tensors(tmp_path / "m.gguf")["position_embd.weight"].tensor_type.name == "F16"


def test_q8_0_is_verified_without_llama_cpp(tmp_path, capsys):
    base = write_base(tmp_path / "base", CONFIGS["starcoder2"])
    export(str(base), str(tmp_path / "m.gguf"), type="model", dtype="q8_0")
    said = capsys.readouterr().out
    assert "verified on " in said
    assert "q8_0 on 442 tokens: logits differ by at most" in said


def test_rows_that_do_not_divide_by_32_stay_in_float16(tmp_path):
    base = write_base(tmp_path / "base", GPT2Config(n_embd=40, n_layer=1, n_head=4, **IDS))
    export(str(base), str(tmp_path / "m.gguf"), type="model", dtype="q8_0", verify=False)
    kinds = {n: t.tensor_type.name for n, t in tensors(tmp_path / "m.gguf").items()}
    assert (kinds["blk.0.ffn_up.weight"], kinds["blk.0.ffn_down.weight"]) == ("F16", "Q8_0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "q8_0"}, "a LoRA is stored in float32, bfloat16, float16: q8_0 needs --type m"),
        ({"dtype": "q4_km", "type": "model"}, "dtype must be auto, .*did you mean q4_k_m"),
        ({"format": "onnx"}, "format must be gguf, got 'onnx'"),
    ],
)
def test_a_wrong_type_is_named(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export("nowhere", str(tmp_path / "m.gguf"), **options)


def test_without_the_extra_its_types_are_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(llama_cpp, "is_installed", lambda: False)
    with pytest.raises(ValueError, match=r"not installed: pip install peft_lightning\[llama\]"):
        export("nowhere", str(tmp_path / "m.gguf"), type="model", dtype="q4_k_m")


# ---- llama.cpp --------------------------------------------------------------------------------


def needs_llama():
    reason = f"needs llama-cpp-python: {llama_cpp.INSTALL}"
    return pytest.importorskip("llama_cpp", reason=reason, exc_type=ImportError)


def answer_of_llama(count, **options):
    module = needs_llama()
    own = {"n_ctx": 64, "logits_all": True, "verbose": False, "n_threads": 1}
    model = module.Llama(**own, type_k=0, type_v=0, **options)
    model.eval(ROW)
    logits = torch.tensor(np.array(model.scores[len(ROW) - 1]))
    model.reset()
    found = model.generate(ROW, top_k=1, temp=0.0, repeat_penalty=1.0)
    return [token for _, token in zip(range(count), found, strict=False)], logits


@pytest.mark.llama
@pytest.mark.parametrize("name", CONFIGS)
def test_llama_answers_as_we_do_from_a_lora_and_from_a_merged_file(name, tmp_path):
    needs_llama()
    base = write_base(tmp_path / "base", CONFIGS[name])
    ckpt = write_adapter(base, tmp_path / "ckpt", LoRA(4, 3, use_rslora=True))
    paths = {k: str(tmp_path / f"{k}.gguf") for k in ("base", "lora", "merged")}
    export(str(base), paths["base"], type="model", verify=False)
    export(str(ckpt), paths["lora"])
    export(str(ckpt), paths["merged"], type="model")
    model = load_base_model(str(base))
    with torch.no_grad():
        plain = model(torch.tensor([ROW])).logits[0, -1]
        load_adapter(model, ckpt)
        logits = model(torch.tensor([ROW])).logits[0, -1]
    assert (logits - plain).abs().max() > 1
    lora = {"model_path": paths["base"], "lora_path": paths["lora"]}
    for way in (lora, {"model_path": paths["merged"]}):
        answer, found = answer_of_llama(20, **way)
        assert_close(found, logits, rtol=0, atol=NEAR)
        with torch.no_grad():
            ours = model(torch.tensor([ROW + answer])).logits[0, len(ROW) - 1 : -1]
        chosen = ours.gather(1, torch.tensor(answer)[:, None])[:, 0]
        assert (chosen >= ours.max(dim=1).values - NEAR).all()


@pytest.mark.llama
def test_q4_k_m_is_verified_before_and_its_difference_is_said(tmp_path, capsys):
    needs_llama()
    base = write_base(tmp_path / "base", CONFIGS["gpt2"])
    ckpt = write_adapter(base, tmp_path / "ckpt", LoRA(r=4))
    export(str(ckpt), str(tmp_path / "m.gguf"), type="model", dtype="q4_k_m")
    said = capsys.readouterr().out
    assert "verified on " in said
    assert "q4_k_m on 442 tokens: logits differ by at most" in said
    assert " q4_k_m, " in said
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q4_K_M
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "ckpt", "m.Modelfile", "m.gguf"]


@pytest.mark.llama
@pytest.mark.parametrize(("kind", "alike"), [("q8_0", 0.998), ("q4_k_m", 0.95)])
@pytest.mark.parametrize("name", ["gemma3", "phi3-longrope", "starcoder2", "gpt_neox"])
def test_llama_computes_nearly_the_same_from_a_quantised_merged_file(name, kind, alike, tmp_path):
    """The rest is the error of 8 or 4 bits, large for weights that are random."""
    needs_llama()
    base = write_base(tmp_path / "base", CONFIGS[name])
    ckpt = write_adapter(base, tmp_path / "ckpt", LoRA(4, 3))
    export(str(ckpt), str(tmp_path / "m.gguf"), type="model", dtype=kind)
    _, found = answer_of_llama(4, model_path=str(tmp_path / "m.gguf"))
    model = load_base_model(str(base))
    with torch.no_grad():
        plain = model(torch.tensor([ROW])).logits[0, -1]
        load_adapter(model, ckpt)
        logits = model(torch.tensor([ROW])).logits[0, -1]
    correlation = torch.corrcoef(torch.stack([found, logits, plain]))
    assert correlation[0, 1] > alike
    assert correlation[0, 1] > correlation[0, 2]  # the adapter is in it
