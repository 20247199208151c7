"""Bases of 4 and 8 bits: loaded, trained over, merged into; what is said where that cannot be."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, LlamaConfig

from peft_lightning import LoRA, load_adapter, load_base_model, save_adapter
from peft_lightning.adapters import Full, read_adapter
from peft_lightning.adapters.lora.layers import LoRALinear
from peft_lightning.base_model import base_fingerprint, quantization, resolve
from peft_lightning.base_model.quantization import (
    QUANTIZATIONS,
    count_numbers,
    dequantized,
    rounds_inputs,
)
from peft_lightning.base_model.weights import open_weights
from peft_lightning.commands.generate import generate
from peft_lightning.commands.merge import merge
from peft_lightning.kernels.packed_weights import FourBits
from peft_lightning.training.schedules import Constant
from rounding import assert_near
from tiny_run import byte_tokenizer, fit, write_base

IDS = torch.arange(4, 44)[None]


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    monkeypatch.setattr(resolve, "hub_answers", lambda: False)


@pytest.fixture
def bitsandbytes():
    return pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


needs_bitsandbytes = [pytest.mark.bitsandbytes, pytest.mark.usefixtures("bitsandbytes")]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny Llama whose layers have multiples of 64 inputs, as 4 bits on a CPU need."""
    folder, tokenizer = tmp_path_factory.mktemp("base"), byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def has_packed(module):
    """Whether the weight of ``module`` is multiplied as it is packed."""
    return hasattr(getattr(module, "weight", None), "packed")


def mark(test):
    """Let ``test`` skip itself without bitsandbytes."""
    for each in needs_bitsandbytes:
        test = each(test)
    return test


def draw(adapter, model):
    """Give the adapter's tensors values, so that it changes what the base says."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        for tensor in adapter.state_dict(model).values():
            tensor.normal_(std=0.1)


def write_adapter(base, folder, facts=None, **options):
    """Save a LoRA with random values over ``base``; return the adapter and its model."""
    model, adapter = load_base_model(str(base), **options), LoRA(r=4)
    facts = {"base_fingerprint": base_fingerprint(model), **(facts or {})}
    adapter.attach(model)
    draw(adapter, model)
    save_adapter(adapter, model, folder, facts)
    return adapter, model


@pytest.fixture(scope="module")
def quantized(base, tmp_path_factory):
    """A base whose folder is of 4 bits."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    folder = tmp_path_factory.mktemp("quantized")
    shutil.copytree(base, folder, dirs_exist_ok=True)
    (folder / "model.safetensors").unlink()
    load_base_model(str(base), quantization="4bit").save_pretrained(folder)
    return folder


# ---- loading -----------------------------------------------------------------------------------


@mark
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bits", QUANTIZATIONS)
def test_linear_layers_are_quantised_and_the_fingerprint_stays(base, bits, dtype):
    plain = load_base_model(str(base))
    model = load_base_model(str(base), quantization=bits, dtype=dtype)
    name = {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}[bits]
    kinds = {n: type(m).__name__ for n, m in model.named_modules() if n.endswith("_proj")}
    assert len(kinds) == 14
    assert set(kinds.values()) == {name}
    assert type(model.lm_head) is torch.nn.Linear
    assert not any(p.requires_grad for p in model.parameters())
    assert base_fingerprint(model) == base_fingerprint(plain)
    assert sum(map(count_numbers, model.parameters())) == plain.num_parameters()
    found = model(IDS).logits
    assert found.dtype == getattr(torch, dtype)
    weight = plain.model.layers[1].mlp.up_proj.weight
    numbers = dequantized(model)
    error = (numbers.model.layers[1].mlp.up_proj.weight.float() - weight).norm() / weight.norm()
    assert 1e-3 < error < {"4bit": 0.15, "8bit": 0.015}[bits]  # a step is 1/8 or 1/127 of a largest
    error = (found - numbers(IDS).logits).norm() / found.norm()
    assert error < {"4bit": 0.02, "8bit": 0.1}[bits]  # 8 bits round the inputs as well


@mark
def test_a_folder_that_is_quantised_already_is_loaded_as_it_is(base, quantized):
    model = load_base_model(str(quantized))
    assert torch.equal(
        model(IDS).logits, load_base_model(str(base), quantization="4bit")(IDS).logits
    )
    half = load_base_model(str(quantized), dtype="bfloat16")
    assert base_fingerprint(half) == base_fingerprint(model)
    assert base_fingerprint(model) != base_fingerprint(load_base_model(str(base)))
    with pytest.raises(ValueError, match="quantised already, by bitsandbytes: leave quantiz"):
        load_base_model(str(quantized), quantization="8bit")


def test_what_cannot_be_quantised_says_why(base, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="must be 4bit or 8bit, got '4'; did you mean 4bit"):
        load_base_model(str(base), quantization="4")
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    install = "pip install bitsandbytes"
    with pytest.raises(ValueError, match=f"quantization 4bit needs .* not here: {install}"):
        load_base_model(str(base), quantization="4bit")
    own = shutil.copytree(base, tmp_path / "base")
    config = json.loads((own / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (own / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"base is quantised by bitsandbytes: {install}"):
        load_base_model(str(own))


def test_a_base_of_mlx_is_named_with_what_to_give_instead(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "mlx")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"group_size": 64, "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    for read in (load_base_model, open_weights):
        with pytest.raises(
            ValueError, match=r"is quantised by MLX.* give the one it was made from"
        ):
            read(str(folder))


@mark
def test_a_gguf_file_is_not_quantised_again(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"")
    with pytest.raises(ValueError, match="is a GGUF file, which is dequantised when"):
        load_base_model(str(tmp_path / "x.gguf"), quantization="4bit")


@mark
def test_layers_that_bitsandbytes_computes_wrongly_are_refused(tmp_path):
    narrow = write_base(tmp_path / "base")  # of 32 inputs
    with pytest.raises(ValueError, match=r"q_proj on a CPU, as its 32 inputs .* of 64: use quant"):
        load_base_model(str(narrow), quantization="4bit")
    load_base_model(str(narrow), quantization="8bit")


# ---- training ----------------------------------------------------------------------------------


@mark
@pytest.mark.parametrize("bits", QUANTIZATIONS)
def test_lora_computes_the_update_of_float32_tensors_beside_the_quantised_product(base, bits):
    model = load_base_model(str(base), quantization=bits, dtype="bfloat16")
    plain, adapter = model.model.layers[0].self_attn.q_proj, LoRA(r=4, lora_alpha=8)
    x = torch.randn(7, plain.in_features, generator=torch.Generator().manual_seed(0))
    x = x.bfloat16()
    before = plain(x).double()
    adapter.attach(model)
    draw(adapter, model)
    layer = model.model.layers[0].self_attn.q_proj
    assert layer.path == "grouped"
    assert {t.dtype for t in adapter.tensors(model).values()} == {torch.float32}
    a, b = (m.weight.detach().double() for m in (layer.lora_A, layer.lora_B))
    found = layer(x)
    assert found.dtype == torch.bfloat16
    assert_close(found.double(), before + 2 * x.double() @ a.T @ b.T, rtol=2e-2, atol=2e-2)


@mark
@pytest.mark.parametrize("bits", QUANTIZATIONS)
def test_a_cpu_computes_and_trains_as_over_the_dequantised_numbers(either_way, base, bits):
    found, kept = [], []
    for numbers in (True, False):
        model = load_base_model(str(base), quantization=bits)
        model = dequantized(model) if numbers else model
        adapter = LoRA(r=2, target_modules=["q_proj", "k_proj", "down_proj"])
        few = model(IDS[:, :3]).logits  # by the kernels that read packed weights
        adapter.attach(model)
        draw(adapter, model)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            output = model(IDS, labels=IDS)
        output.loss.backward()
        grads = [p.grad for p in model.parameters() if p.requires_grad]
        found.append((few, output.logits, *grads))
    assert not rounds_inputs(model)
    for one, other in zip(*found, strict=True):  # sums of 64 in another order, in two layers
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()
    shapes = {tuple(m.weight.packed.shape) for m in model.modules() if has_packed(m)}
    assert shapes
    assert not [t for t in kept if t.dtype == torch.float32 and tuple(t.shape) in shapes]


@mark
def test_scales_that_are_no_numbers_of_eight_bits_are_read_too(either_way):
    import bitsandbytes as bnb

    weight = torch.randn(6, 128, generator=torch.Generator().manual_seed(0))
    for nested in (True, False):
        for kind in ("nf4", "fp4"):
            data, state = bnb.functional.quantize_4bit(
                weight, quant_type=kind, compress_statistics=nested
            )
            found = torch.empty(3, 128)
            FourBits(data, state).read(2, 5, found)
            assert_close(found, bnb.functional.dequantize_4bit(data, state)[2:5])


@mark
@pytest.mark.parametrize("bits", QUANTIZATIONS)
def test_a_copy_of_a_quantised_model_is_computed_by_bitsandbytes(base, bits):
    model = load_base_model(str(base), quantization=bits)
    other = copy.deepcopy(model)
    assert not any(has_packed(m) for m in other.modules())
    found, want = other(IDS).logits, model(IDS).logits
    assert (found - want).norm() < 0.1 * want.norm()


@mark
@pytest.mark.parametrize("bits", QUANTIZATIONS)
def test_a_run_over_a_quantised_base_learns_and_is_resumed_bit_for_bit(base, rows, tmp_path, bits):
    module = {"quantization": bits, "lr_schedule": Constant()}
    options = {"module": module, "data": {"val": str(rows)}, "max_epochs": 4}
    whole = fit(base, rows, tmp_path / "whole", **options)
    fit(base, rows, tmp_path / "cut", **{**options, "max_epochs": 2})
    last = str(tmp_path / "cut" / "checkpoints" / "last.ckpt")
    fit(base, rows, tmp_path / "cut", **options, ckpt_path=last)
    ckpt = tmp_path / "whole" / "checkpoints" / "last.ckpt"
    one, other = (load_file(f"{f}/adapter_model.safetensors") for f in (ckpt, last))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    first = fit(base, rows, tmp_path / "one", **{**options, "max_epochs": 1})
    assert whole.callback_metrics["val/loss"] < first.callback_metrics["val/loss"] - 0.1
    facts = read_adapter(ckpt)[2]
    assert facts["quantization"] == bits
    assert facts["base_fingerprint"] == base_fingerprint(load_base_model(str(base)))


@mark
def test_gradients_after_an_evaluation_are_those_before_it(base):
    def gradients(evaluated):
        model = load_base_model(str(base), quantization="4bit")
        adapter = LoRA(r=2, target_modules=["q_proj"])
        adapter.attach(model)
        draw(adapter, model)
        if evaluated:
            with torch.no_grad():
                model(IDS)
        model(IDS, labels=IDS).loss.backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    for one, other in zip(gradients(False), gradients(True), strict=True):
        assert_close(one, other)


@mark
@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (Full(), "full fine-tuning cannot train quantised weights"),
        (LoRA(use_dora=True), "DoRA needs the base's weight"),
        (LoRA(init_lora_weights="pissa"), "'pissa' needs the base's weight, which is quantised"),
        (LoRA(modules_to_save=["up_proj"]), "cannot train model.layers.0.mlp.up_proj, whose"),
    ],
)
def test_what_needs_the_bases_numbers_is_refused_and_the_model_left_alone(base, adapter, message):
    model = load_base_model(str(base), quantization="4bit")
    with pytest.raises(ValueError, match=message):
        adapter.attach(model)
    assert not any(isinstance(module, LoRALinear) for module in model.modules())
    LoRA(modules_to_save=["lm_head"]).attach(model)


# ---- answering and merging ---------------------------------------------------------------------


@mark
def test_generate_answers_with_a_quantised_base_and_its_adapter(base, tmp_path, capsys):
    write_adapter(base, tmp_path / "ckpt", quantization="4bit")
    generate("say 3", ckpt_path=str(tmp_path / "ckpt"), quantization="4bit", max_new_tokens=60)
    quantised = capsys.readouterr().out
    generate("say 3", ckpt_path=str(tmp_path / "ckpt"), max_new_tokens=60)
    assert quantised != capsys.readouterr().out


@mark
def test_an_adapter_of_a_quantised_base_is_merged_into_the_original_weights(base, tmp_path, capsys):
    write_adapter(base, tmp_path / "ckpt", {"quantization": "4bit"}, quantization="4bit")
    merge(str(tmp_path / "ckpt"), str(tmp_path / "out"))
    assert "was trained over 4bit weights" in (said := capsys.readouterr().out)
    assert "merged into the original ones; --quantization 4bit" in said
    model = load_base_model(str(base))
    load_adapter(model, tmp_path / "ckpt")
    assert_near(load_base_model(str(tmp_path / "out"))(IDS).logits, model(IDS).logits)


@mark
def test_an_adapter_of_a_base_whose_files_are_quantised_goes_onto_the_plain_base_in_a_line(
    base, quantized, tmp_path, recwarn
):
    own = base_fingerprint(load_base_model(str(quantized)))
    plain = base_fingerprint(load_base_model(str(base)))
    assert own == {**plain, "weights": own["weights"], "quantized": True}
    write_adapter(quantized, tmp_path / "ckpt", {"base_fingerprint": own})
    merge(str(tmp_path / "ckpt"), str(tmp_path / "out"), base_model=str(base))
    said = [str(w.message) for w in recwarn if "was trained over the quantised" in str(w.message)]
    assert len(said) == 1
    assert "they have the same names and shapes" in said[0]
    model = load_base_model(str(base))
    load_adapter(model, tmp_path / "ckpt")
    assert_near(load_base_model(str(tmp_path / "out"))(IDS).logits, model(IDS).logits)
    other = {**plain, "shapes": "x"}
    with pytest.raises(ValueError, match="its weights have other names or shapes than these"):
        load_adapter(load_base_model(str(base)), tmp_path / "ckpt", base_fingerprint=other)


@mark
@pytest.mark.parametrize("bits", [*QUANTIZATIONS, None])
def test_dequantised_weights_are_merged_into_where_that_is_asked_or_there_are_no_others(
    base, quantized, tmp_path, capsys, bits
):
    place, options = (base, {"quantization": bits}) if bits else (quantized, {})
    write_adapter(place, tmp_path / "ckpt", **options)
    merge(str(tmp_path / "ckpt"), str(tmp_path / "out"), **options)
    said = capsys.readouterr().out
    assert "dequantised" in said
    assert "verified" in said
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    model = dequantized(load_base_model(str(place), **options))
    weight = model.model.layers[1].mlp.up_proj.weight.double()
    tensors = load_file(tmp_path / "ckpt" / "adapter_model.safetensors")
    stem = "base_model.model.model.layers.1.mlp.up_proj."
    a, b = (tensors[f"{stem}lora_{part}.weight"].double() for part in "AB")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    want = weight + LoRA(r=4).lora_alpha / 4 * b @ a
    assert_close(merged["model.layers.1.mlp.up_proj.weight"].double(), want, rtol=1e-6, atol=1e-6)
