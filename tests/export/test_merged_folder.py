"""The command merge: the folder it writes, what it refuses, and how it verifies."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

import warm_python
from parity import IDS, hf_folder, randomise
from peft_lightning.adapters import Full, LoRA, PromptTuning, load_adapter, save_adapter
from peft_lightning.adapters.merge import merged
from peft_lightning.base_model import base_fingerprint, load_base_model, resolve
from peft_lightning.base_model.weights import NotStreamableError, open_weights
from peft_lightning.commands.merge import merge
from peft_lightning.export import merged_weights
from peft_lightning.export.verify import Comparison
from peft_lightning.files import size_in_bytes
from rounding import assert_near
from tiny import ARCHITECTURES, tiny_model
from tiny_gguf import digit_tokenizer, write_gguf
from tiny_run import byte_tokenizer, write_base


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    monkeypatch.setattr(resolve, "hub_answers", lambda: False)


def write_adapter(base, folder, adapter=None, std=0.1, tokenizer=None):
    """Save a random adapter over ``base``."""
    model, adapter = load_base_model(str(base), frozen=False), adapter or LoRA(r=4)
    facts = {"base_fingerprint": base_fingerprint(model)}
    adapter.attach(model)
    randomise(adapter.state_dict(model))
    for tensor in adapter.state_dict(model).values():
        tensor.mul_(std / 0.3)
    save_adapter(adapter, model, folder, facts, tokenizer or byte_tokenizer())
    return folder


@pytest.fixture(scope="module")
def lora(base, tmp_path_factory):
    """A LoRA over ``base`` that changes its logits much."""
    return write_adapter(base, tmp_path_factory.mktemp("lora") / "best.ckpt")


def same(one, other):
    assert_near(one, other)


def logits(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits


def adapted_logits(base, ckpt, dtype="float32"):
    model = load_base_model(str(base), dtype=dtype)
    load_adapter(model, ckpt)
    return model(IDS).logits


# ---- what is written --------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_loads_the_folder_and_computes_what_base_and_adapter_do(
    architecture, tmp_path, capsys
):
    base = write_base(tmp_path / "base", architecture)
    ckpt = write_adapter(base, tmp_path / "ckpt")
    merge(str(ckpt), str(tmp_path / "out"))
    same(logits(tmp_path / "out"), adapted_logits(base, ckpt))
    assert (logits(tmp_path / "out") - logits(base)).abs().max() > 0.1
    assert "cannot be read tensor by tensor" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("llama", {"use_dora": True, "use_rslora": True, "rank_pattern": {"q_proj": 2}}),
        ("gpt2", {"use_dora": True, "bias": "all"}),
        ("gpt2", {"lora_bias": True, "bias": "lora_only"}),
        ("gpt2", {"init_lora_weights": "pissa"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("saved", ["float32", "bfloat16"])
def test_variants_of_lora_are_merged(architecture, fields, saved, tmp_path, capsys):
    base = write_base(tmp_path / "base", architecture, dtype=getattr(torch, saved))
    own = load_base_model(str(base), dtype="float32", frozen=False)
    adapter = LoRA(r=4, **fields)
    adapter.attach(own)
    with torch.no_grad():
        for parameter in own.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    save_adapter(adapter, own, tmp_path / "ckpt")
    merge(str(tmp_path / "ckpt"), str(tmp_path / "out"), base_model=str(base), dtype="float32")
    same(logits(tmp_path / "out"), adapted_logits(base, tmp_path / "ckpt"))
    assert (logits(tmp_path / "out") - logits(base)).abs().max() > 0.05
    assert "cannot be read tensor by tensor" not in capsys.readouterr().out


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
def test_pissa_as_hf_peft_writes_it_is_merged_as_hf_peft_computes_it(architecture, tmp_path):
    base = write_base(tmp_path / "base", architecture)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights="pissa")
    peft = hf_folder(config, AutoModelForCausalLM.from_pretrained(base), tmp_path / "hf")
    merge(str(tmp_path / "hf"), str(tmp_path / "out"), base_model=str(base))
    same(logits(tmp_path / "out"), peft(IDS).logits)


def test_a_bias_that_the_base_has_no_place_for_is_named(base, tmp_path):
    ckpt = write_adapter(base, tmp_path / "ckpt", LoRA(r=2, lora_bias=True))
    with pytest.raises(ValueError, match=r"q_proj: its update has a bias \(lora_bias\)"):
        merge(str(ckpt), str(tmp_path / "out"))


def test_the_files_are_the_bases_with_the_sums_of_the_definition(base, lora, tmp_path):
    merge(str(lora), str(tmp_path / "out"), verify=False)
    before, after = (load_file(f / "model.safetensors") for f in (base, tmp_path / "out"))
    tensors = load_file(lora / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.weight" in tensors:
            a, b = (tensors[f"{stem}.lora_{p}.weight"].double() for p in "AB")
            weight = (weight.double() + 32 / 4 * b @ a).float()
        assert_close(after[name], weight)


@pytest.mark.parametrize("saved", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "float16"])
def test_weights_have_the_dtype_that_is_asked_for(saved, dtype, tmp_path):
    base = write_base(tmp_path / "base", dtype=getattr(torch, saved))
    ckpt = write_adapter(base, tmp_path / "ckpt")
    merge(str(ckpt), str(tmp_path / "out"), dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    want = getattr(torch, saved if dtype == "auto" else dtype)
    assert {p.dtype for p in model.parameters()} == {want}
    wide = load_base_model(str(base), dtype="float32")
    load_adapter(wide, ckpt)
    with merged(wide):  # rounded once, from the sum of the weight as it is saved
        exact = {name: p.to(want) for name, p in wide.state_dict().items()}
    assert all(torch.equal(p, exact[name]) for name, p in model.state_dict().items())


def test_shards_have_an_index_and_none_is_larger_than_asked(base, lora, tmp_path):
    merge(str(lora), str(tmp_path / "out"), max_shard_size="20KB")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    sizes = [sum(t.nbytes for t in load_file(file).values()) for file in files]
    largest = max(t.nbytes for t in load_file(base / "model.safetensors").values())
    assert max(sizes) <= max(20_000, largest)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes)
    assert set(index["weight_map"].values()) == {file.name for file in files}
    same(logits(tmp_path / "out"), adapted_logits(base, lora))


def test_a_base_of_several_files_is_merged(base, lora, tmp_path):
    tiny = tmp_path / "base"
    load_base_model(str(base)).save_pretrained(tiny, max_shard_size="20KB")
    byte_tokenizer().save_pretrained(tiny)
    assert not (tiny / "model.safetensors").exists()
    merge(str(lora), str(tmp_path / "out"), base_model=str(tiny))
    same(logits(tmp_path / "out"), adapted_logits(base, lora))
    next(tiny.glob("*-00002-*")).unlink()
    with pytest.raises(ValueError, match=r"is not complete: model.safetensors.index.json names"):
        merge(str(lora), str(tmp_path / "out"), base_model=str(tiny), overwrite=True)


def assert_read_by_transformers_4(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_tokenizer_template_generation_config_and_licence_come_along(base, lora, tmp_path):
    own = shutil.copytree(base, tmp_path / "base")
    (own / "LICENSE").write_text("free")
    (own / "pytorch_model.bin.index.json").write_text("{}")
    merge(str(lora), str(tmp_path / "out"), base_model=str(own))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    want = byte_tokenizer()
    assert tokenizer("hi <|im_end|>")["input_ids"] == want("hi <|im_end|>")["input_ids"]
    assert tokenizer.chat_template == want.chat_template
    assert_read_by_transformers_4(tmp_path / "out")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "LICENSE"} <= names
    assert not [n for n in names if "adapter" in n or "index" in n or n == "UNVERIFIED"]


def test_a_tied_head_that_was_trained_is_untied(tmp_path):
    base = write_base(tmp_path / "base", "qwen2")
    ckpt = write_adapter(base, tmp_path / "ckpt", LoRA(r=4, target_modules=["lm_head", "q_proj"]))
    merge(str(ckpt), str(tmp_path / "out"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not model.config.tie_word_embeddings
    before = load_base_model(str(base)).get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, before)
    same(logits(tmp_path / "out"), adapted_logits(base, ckpt))


def test_a_tied_model_stays_tied_otherwise(tmp_path):
    base = write_base(tmp_path / "base", "qwen2")
    merge(str(write_adapter(base, tmp_path / "ckpt")), str(tmp_path / "out"))
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"]


def test_files_without_the_models_prefix_are_understood(tmp_path):
    base = write_base(tmp_path / "base", "gpt2")  # as the hub's GPT-2: h.0.attn..., no transformer.
    ckpt = write_adapter(base, tmp_path / "ckpt")
    tensors = load_file(base / "model.safetensors")
    bare = {name.removeprefix("transformer."): t for name, t in tensors.items()}
    bare["h.0.attn.masked_bias"] = torch.tensor(-1e4)  # nothing reads it
    save_file(bare, base / "model.safetensors", metadata={"format": "pt"})
    merge(str(ckpt), str(tmp_path / "out"))
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == bare.keys()
    same(logits(tmp_path / "out"), adapted_logits(base, ckpt))


# ---- memory -----------------------------------------------------------------------------------

PEAK = """
import re, sys
from pathlib import Path
from peft_lightning.adapters.folder import read_adapter
from peft_lightning.base_model.weights import open_weights
from peft_lightning.export.merged_folder import write_streamed
from peft_lightning.export.merged_weights import MergedTensors
base, ckpt, out = map(Path, sys.argv[1:])
def high():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3
adapter, tensors, _ = read_adapter(ckpt)
weights = open_weights(str(base))
Path("/proc/self/clear_refs").write_text("5")
before = high()
weights.fingerprint()
write_streamed(out, MergedTensors(weights, adapter, tensors, None), 20_000_000)
print(high() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_memory_stays_near_one_shard(tmp_path):
    config = tiny_model("llama").config
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 1024, 2816, 5
    config.head_dim = 256
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "base")
    size = (tmp_path / "base" / "model.safetensors").stat().st_size / 1e6
    assert size > 200  # MB
    adapter = LoRA(r=4)
    adapter.attach(model)
    save_adapter(adapter, model, tmp_path / "ckpt")
    (tmp_path / "out").mkdir()
    args = [str(tmp_path / name) for name in ("base", "ckpt", "out")]
    run = subprocess.run(
        [sys.executable, "-c", PEAK, *args], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    # a shard of 20 MB, its bytes once more in safetensors, a weight, its update and their sum of
    # 12 MB each, and what the allocator keeps
    assert float(run.stdout) < 100 < size / 2


def test_a_folder_without_a_fingerprint_is_said_to_be_unchecked_once(base, tmp_path):
    model, adapter = load_base_model(str(base)), LoRA(r=4)
    adapter.attach(model)
    save_adapter(adapter, model, tmp_path / "ckpt")
    with pytest.warns(UserWarning, match="has no fingerprint of its base") as said:
        merge(str(tmp_path / "ckpt"), str(tmp_path / "out"))
    assert len([w for w in said if "fingerprint" in str(w.message)]) == 1


# ---- bases that are loaded whole ---------------------------------------------------------------


def test_a_gguf_base_is_dequantised_and_merged(tmp_path, capsys):
    file = write_gguf(
        tmp_path / "tiny.gguf", tiny_model("llama", vocab_size=len(digit_tokenizer()))
    )
    ckpt = write_adapter(file, tmp_path / "ckpt", tokenizer=digit_tokenizer())
    merge(str(ckpt), str(tmp_path / "out"), dtype="bfloat16")
    assert (
        "loaded whole: it is a GGUF file, whose weights are dequantised" in capsys.readouterr().out
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    exact = load_base_model(str(file))
    load_adapter(exact, ckpt)
    with merged(exact):
        for name, tensor in exact.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor.bfloat16())
    assert_read_by_transformers_4(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("a  23")["input_ids"] == digit_tokenizer()("a  23")["input_ids"]


def test_a_base_without_safetensors_is_merged_too(tmp_path, capsys):
    base = write_base(tmp_path / "base", "qwen2")
    ckpt = write_adapter(base, tmp_path / "ckpt", LoRA(r=4, target_modules=["lm_head", "q_proj"]))
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    torch.save(tensors, base / "pytorch_model.bin")
    merge(str(ckpt), str(tmp_path / "out"))
    assert "loaded whole: it has no model.safetensors" in capsys.readouterr().out
    same(logits(tmp_path / "out"), adapted_logits(base, ckpt))


def test_a_base_whose_tensors_are_fused_on_loading_is_not_read_piece_by_piece(tmp_path):
    from transformers import MixtralConfig

    sizes = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2}
    model = AutoModelForCausalLM.from_config(MixtralConfig(**sizes, **heads))
    model.save_pretrained(tmp_path)
    with pytest.raises(NotStreamableError, match=r"makes model.layers.0.mlp.experts.* of several"):
        open_weights(str(tmp_path))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_fingerprint_is_the_same_tensor_by_tensor(architecture, tmp_path):
    write_base(tmp_path, architecture)
    assert open_weights(str(tmp_path)).fingerprint() == base_fingerprint(
        load_base_model(str(tmp_path))
    )


# ---- verification -----------------------------------------------------------------------------


def test_both_losses_and_the_difference_are_printed(lora, tmp_path, capsys):
    merge(str(lora), str(tmp_path / "out"))
    said = capsys.readouterr().out
    assert "merged: " in said
    assert "logits differ by at most" in said
    losses = [float(loss) for loss in re.findall(r"(\d+\.\d+) (?:merged|base and)", said)]
    assert losses == [pytest.approx(losses[0], abs=1e-4)] * 2


def test_a_merge_that_is_wrong_leaves_a_file_that_says_so(lora, tmp_path, monkeypatch):
    monkeypatch.setattr(
        merged_weights, "add_update", lambda weight, *args, **kwargs: weight.clone()
    )
    out = tmp_path / "out"
    with pytest.raises(RuntimeError, match="out is not what was trained: its logits differ"):
        merge(str(lora), str(out))
    assert "of their standard deviation" in (out / "UNVERIFIED").read_text()
    assert logits(out).isfinite().all()
    merge(str(lora), str(out), verify=False, overwrite=True)
    assert not (out / "UNVERIFIED").exists()


def test_the_max_logit_difference_is_the_users(base, tmp_path):
    ckpt = write_adapter(base, tmp_path / "ckpt")
    merge(str(ckpt), str(tmp_path / "out"), dtype="bfloat16", max_logit_difference=1.0)
    with pytest.raises(RuntimeError, match="and 1e-05 is allowed"):
        merge(
            str(ckpt),
            str(tmp_path / "out"),
            dtype="bfloat16",
            max_logit_difference=1e-5,
            overwrite=True,
        )


def test_an_adapter_that_rounding_hides_is_noticed(base, tmp_path):
    ckpt = write_adapter(base, tmp_path / "ckpt", std=0.003)  # updates of 1e-4 on weights of 0.2
    with pytest.raises(RuntimeError, match="of what the adapter does: rounding the weights hides"):
        merge(str(ckpt), str(tmp_path / "out"), dtype="bfloat16")
    merge(str(ckpt), str(tmp_path / "out"), dtype="float32", overwrite=True)


def test_agreement_is_judged_by_spread_and_by_effect():
    good = Comparison(10, 0.1, 2.0, 0.01, 1.0, 1.0)
    assert good.problem(0.06) is None
    assert "0.05 of their standard deviation" in good.problem(0.04)
    assert "90% of what the adapter does" in Comparison(10, 0.1, 2.0, 0.9, 1.0, 1.0).problem(0.06)
    assert Comparison(10, 0.0, 0.0, 0.0, 1.0, 1.0).problem(0.06) is None
    assert Comparison(10, float("nan"), 2.0, 0.0, 1.0, 1.0).problem(0.06) is not None


def test_an_adapter_that_does_nothing_is_merged(base, tmp_path):
    ckpt = write_adapter(base, tmp_path / "ckpt", std=0.0)
    merge(str(ckpt), str(tmp_path / "out"), dtype="float32")
    assert torch.equal(logits(tmp_path / "out"), logits(base))


def test_a_text_of_the_users_is_compared(lora, tmp_path, capsys):
    (tmp_path / "own.txt").write_text("seven by")
    merge(str(lora), str(tmp_path / "out"), text=str(tmp_path / "own.txt"))
    assert "verified on 8 tokens" in capsys.readouterr().out
    (tmp_path / "own.txt").write_text("a")
    with pytest.raises(ValueError, match="less than two tokens"):
        merge(str(lora), str(tmp_path / "out"), text=str(tmp_path / "own.txt"), overwrite=True)


# ---- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bf16"}, r"float16, got 'bf16'; did you mean bfloat16\?"),
        ({"max_shard_size": "2"}, "max_shard_size must be a size such as 2GB or 500MB, got '2'"),
        ({"max_logit_difference": 0.0}, "max_logit_difference must be above 0, got 0"),
        ({"text": "no.txt"}, "there is no file no.txt"),
        ({"base_model": "no/such/base"}, "there is no no/such/base"),
    ],
)
def test_a_wrong_option_is_named(lora, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        merge(str(lora), str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()


def test_sizes_are_read():
    assert [size_in_bytes(s) for s in ("2GB", "500mb", "1.5GiB")] == [2e9, 5e8, 1.5 * 2**30]


def test_an_adapter_of_another_base_is_refused_unless_it_is_allowed(lora, tmp_path):
    other = tmp_path / "other"
    tiny_model("llama", vocab_size=len(byte_tokenizer()), seed=7).save_pretrained(other)
    byte_tokenizer().save_pretrained(other)
    with pytest.raises(ValueError, match="was trained on another base model"):
        merge(str(lora), str(tmp_path / "out"), base_model=str(other))
    merge(
        str(lora),
        str(tmp_path / "out"),
        base_model=str(other),
        allow_base_mismatch=True,
        overwrite=True,
    )
    assert (tmp_path / "out" / "config.json").is_file()


def test_an_adapter_that_does_not_fit_names_what_is_missing(base, lora, tmp_path):
    broken = shutil.copytree(lora, tmp_path / "ckpt")
    (broken / "SHA256SUMS").unlink()
    tensors = load_file(broken / "adapter_model.safetensors")
    del tensors["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"]
    save_file(tensors, broken / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"1 missing in the file: .*layers.0.mlp.up_proj.lora_A"):
        merge(str(broken), str(tmp_path / "out"))


def test_values_that_are_not_finite_name_their_layer(lora, tmp_path):
    broken = shutil.copytree(lora, tmp_path / "ckpt")
    (broken / "SHA256SUMS").unlink()
    tensors = load_file(broken / "adapter_model.safetensors")
    tensors["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"][0, 0] = float("inf")
    save_file(tensors, broken / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"merge into model.layers.1.mlp.up_proj: .*not finite"):
        merge(str(broken), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (
            PromptTuning(num_virtual_tokens=3),
            "ckpt is a PROMPT_TUNING adapter, .*generate --ckpt_path",
        ),
        (Full(), "ckpt is a whole model already"),
    ],
)
def test_what_changes_no_weight_of_a_base_is_told_what_to_do(base, tmp_path, adapter, message):
    ckpt = write_adapter(base, tmp_path / "ckpt", adapter)
    with pytest.raises(ValueError, match=message):
        merge(str(ckpt), str(tmp_path / "out"))


def test_a_quantised_base_is_refused(base, lora, tmp_path):
    own = shutil.copytree(base, tmp_path / "base")
    config = json.loads((own / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (own / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is quantised by gptq: give the one it was made from"):
        merge(str(lora), str(tmp_path / "out"), base_model=str(own))


def test_neither_the_base_nor_the_adapter_nor_a_strangers_folder_is_overwritten(
    base, lora, tmp_path
):
    for place in (base, lora, lora.parent):
        with pytest.raises(ValueError, match=r"would take the place of .*, which is read"):
            merge(str(lora), str(place))
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="is no merged model that was written here"):
        merge(str(lora), str(tmp_path))
    assert base.joinpath("config.json").is_file()


def test_the_command_line_merges_and_its_exit_status_tells_a_failed_verification(lora, tmp_path):
    command = ["-m", "peft_lightning", "merge", lora, tmp_path / "out"]
    good = warm_python.run(command)
    assert (good.returncode, "verified on" in good.stdout) == (0, True), good.stderr
    options = ["--dtype", "bfloat16", "--max_logit_difference", "1e-6"]
    bad = warm_python.run([*command, *options, "--overwrite"])
    assert bad.returncode == 1
    assert "error: " in bad.stderr
    assert (tmp_path / "out" / "UNVERIFIED").is_file()


def test_naming_the_command_does_not_import_torch():
    code = "import sys, peft_lightning.commands.merge; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- generation_config.json -------------------------------------------------------------------

BAD = {  # each kept by transformers 5 or not, and what the folder has of it
    "refused when it is loaded": {"num_return_sequences": 3, "max_new_tokens": 0},
    "refused when it is saved": {"temperature": 0.6, "top_p": 0.9},
}


def with_generation_config(base, folder, **values):
    shutil.copytree(base, folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return folder


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("whole", [False, True])
def test_an_invalid_generation_config_of_the_base_is_mended_and_said(
    bad, whole, base, lora, tmp_path, capsys
):
    broken = with_generation_config(base, tmp_path / "base", **BAD[bad])
    ckpt = write_adapter(broken, tmp_path / "ckpt", LoRA(r=2, modules_to_save=["lm_head"] * whole))
    merge(str(ckpt), str(tmp_path / "out"), verify=False)
    said = "".join(capsys.readouterr())
    for name, value in BAD[bad].items():
        assert re.search(
            rf"{broken} is not valid, and is (read|written) without {name} {value} \(", said
        )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    model.generation_config.validate(strict=True)
    model.save_pretrained(tmp_path / "again")
    assert not BAD[bad].keys() & json.loads((tmp_path / "out/generation_config.json").read_text())


def test_every_token_that_ends_an_answer_is_in_the_generation_config(base, lora, tmp_path):
    file = tmp_path / "base" / "generation_config.json"
    with_generation_config(base, tmp_path / "base", eos_token_id=[7, 9], do_sample=True, top_k=20)
    merge(str(lora), str(tmp_path / "out"), base_model=str(file.parent), verify=False)
    found = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    end = byte_tokenizer().eos_token_id
    assert (found["eos_token_id"], found["do_sample"], found["top_k"]) == ([7, 9, end], True, 20)
