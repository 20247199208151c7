"""The command export: GGUF files of a LoRA and of a merged model; how llama.cpp reads them."""

import json

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

import warm_python
from parity import randomise
from peft_lightning.adapters import Full, LoRA, PromptTuning, load_adapter, save_adapter
from peft_lightning.base_model import base_fingerprint, load_base_model, load_tokenizer, resolve
from peft_lightning.commands.export import export
from peft_lightning.commands.merge import merge
from peft_lightning.export import gguf_model, merged_weights
from peft_lightning.export.gguf_layout import Layout
from peft_lightning.export.gguf_tokenizer import SPLITS, find_pre
from peft_lightning.export.llama_cpp import is_installed as llama_is_installed
from rounding import assert_near
from tiny import tiny_config, tiny_model
from tiny_gguf import digit_tokenizer, interleaved, write_gguf

NEAR = 0.02  # of logits with a deviation above 1: what llama.cpp's own arithmetic explains
IDS = torch.arange(4, 15)[None]
ARCHITECTURES = ["llama", "llama3", "biased", "mistral", "qwen2", "qwen3"]
UNREAD = {  # of a GGUF file by transformers: what is said, and what the test sets
    "llama3": "rope_type as default, and it is llama3",
    "biased": "attention_bias as False, and it is True",
}
PATTERNS = {"q_proj": 5, "down_proj": 3}
LORAS = {
    "plain": LoRA(r=4, lora_alpha=3),
    "rslora": LoRA(r=4, lora_alpha=3, use_rslora=True),
    "patterns": LoRA(r=4, lora_alpha=3, rank_pattern=PATTERNS, alpha_pattern={"k_proj": 7}),
    "both": LoRA(4, 3, use_rslora=True, rank_pattern=PATTERNS, alpha_pattern={"k_proj": 7}),
}


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    monkeypatch.setattr(resolve, "hub_answers", lambda: False)


def config_of(architecture):
    size = len(digit_tokenizer())
    if architecture == "qwen3":
        own = {k: v for k, v in tiny_config("qwen2", size).to_dict().items() if k in SIZES}
        return Qwen3Config(**own, head_dim=128, tie_word_embeddings=True)
    if architecture == "biased":
        config = tiny_config("llama", size)
        config.attention_bias = config.mlp_bias = True
        config.head_dim = 16
        return config
    if architecture == "llama3":
        own = {k: v for k, v in tiny_config("llama", size).to_dict().items() if k in SIZES}
        rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0}
        rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
        return LlamaConfig(**own, rope_parameters=rope)
    config = tiny_config(architecture, size)
    if architecture == "mistral":
        config.sliding_window = 64
    return config


SIZES = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}
SIZES |= {"num_key_value_heads", "max_position_embeddings", "vocab_size"}


def write_base(folder, architecture):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config_of(architecture))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
            parameter.data += float(parameter.ndim == 1)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    digit_tokenizer().save_pretrained(folder)
    return folder


def write_adapter(base, folder, adapter):
    model = load_base_model(str(base), frozen=False)
    facts = {"base_fingerprint": base_fingerprint(model)}
    adapter.attach(model)
    randomise(adapter.state_dict(model))
    for tensor in adapter.state_dict(model).values():
        tensor.mul_(0.7)
    save_adapter(adapter, model, folder, facts, digit_tokenizer())
    return folder


@pytest.fixture(scope="module", params=ARCHITECTURES)
def base(request, tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base") / request.param, request.param)


@pytest.fixture(scope="module", params=LORAS)
def ckpt(request, base, tmp_path_factory):
    return write_adapter(base, tmp_path_factory.mktemp("ckpt") / "c", LORAS[request.param])


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A tiny Llama and a LoRA on it."""
    root = tmp_path_factory.mktemp("llama")
    base = write_base(root / "base", "llama")
    return base, write_adapter(base, root / "ckpt", LORAS["rslora"])


def fields(file):
    return {name: f.contents() for name, f in gguf.GGUFReader(file).fields.items()}


def tensors(file):
    return {t.name: torch.tensor(np.array(t.data)) for t in gguf.GGUFReader(file).tensors}


# ---- a LoRA -----------------------------------------------------------------------------------


def test_alpha_over_rank_times_b_a_is_the_update_in_llamas_order(base, ckpt, tmp_path):
    export(str(ckpt), str(tmp_path / "lora.gguf"))
    known, found = fields(tmp_path / "lora.gguf"), tensors(tmp_path / "lora.gguf")
    assert (known["general.type"], known["adapter.type"]) == ("adapter", "lora")
    model = load_base_model(str(base)).double()
    layers = load_adapter(model, ckpt).layers(model)
    places_of = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v"}
    places_of |= {"o_proj": "attn_output", "gate_proj": "ffn_gate", "up_proj": "ffn_up"}
    places_of |= {"down_proj": "ffn_down"}
    assert len(found) == 2 * len(layers)
    for name, layer in layers.items():
        block, leaf = name.split(".")[2], name.rpartition(".")[2]
        a, b = (found[f"blk.{block}.{places_of[leaf]}.weight.lora_{p}"].double() for p in "ab")
        update = layer.scaling * layer.lora_B.weight @ layer.lora_A.weight
        if known["general.architecture"] == "llama":
            update = interleaved(name, update.detach(), model.config)
        assert_close(known["adapter.lora.alpha"] / b.shape[1] * b @ a, update, rtol=0, atol=1e-6)


def test_a_plain_lora_is_written_bit_for_bit(tmp_path):
    base = write_base(tmp_path / "base", "qwen2")
    ckpt = write_adapter(base, tmp_path / "ckpt", LORAS["plain"])
    export(str(ckpt), str(tmp_path / "lora.gguf"))
    model = load_base_model(str(base))
    load_adapter(model, ckpt)
    own = model.model.layers[1].mlp.up_proj
    found = tensors(tmp_path / "lora.gguf")
    assert torch.equal(found["blk.1.ffn_up.weight.lora_a"], own.lora_A.weight)
    assert torch.equal(found["blk.1.ffn_up.weight.lora_b"], own.lora_B.weight)
    assert fields(tmp_path / "lora.gguf")["adapter.lora.alpha"] == 3


def test_a_tied_output_embedding_has_no_place_in_a_lora_file(tmp_path):
    base = write_base(tmp_path / "base", "qwen2")
    ckpt = write_adapter(base, tmp_path / "ckpt", LoRA(r=2, target_modules=["lm_head"]))
    with pytest.raises(ValueError, match=r"tied to the input embedding .* export --type model"):
        export(str(ckpt), str(tmp_path / "lora.gguf"))
    assert not list(tmp_path.glob("*.gguf"))
    export(str(ckpt), str(tmp_path / "model.gguf"), type="model")
    assert "output.weight" in tensors(tmp_path / "model.gguf")


# ---- a merged model ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "dtype"),
    [*((name, "bfloat16") for name in ARCHITECTURES), ("llama", "float32"), ("llama", "float16")],
    indirect=["base"],
)
def test_our_loader_reads_the_logits_of_the_merged_folder(base, tmp_path, dtype, capsys):
    ckpt = write_adapter(base, tmp_path / "ckpt", LORAS["patterns"])
    file = tmp_path / "model.gguf"
    threshold = 1e-3 if dtype == "float32" else 0.5  # random weights carry roundings far
    export(str(ckpt), str(file), type="model", dtype=dtype, max_logit_difference=threshold)
    merge(str(ckpt), str(tmp_path / "merged"), dtype=dtype, max_logit_difference=threshold)
    if unread := UNREAD.get(base.name):
        said = capsys.readouterr().out
        if not llama_is_installed():
            assert f"not verified: transformers reads {unread}" in said
        else:
            assert "verified on " in said  # by llama.cpp, which reads it right
        return
    want = load_base_model(str(tmp_path / "merged"), dtype="float32")
    model = load_base_model(str(file))
    vectors = [n for n, p in want.named_parameters() if p.ndim == 1]  # float32 in a GGUF file
    exact = load_base_model(str(base), dtype="float32").state_dict()
    want.load_state_dict({n: exact[n] for n in vectors}, strict=False)
    assert_near(model(IDS).logits, want(IDS).logits)
    matrix = next(t for t in gguf.GGUFReader(file).tensors if t.name == "blk.0.ffn_up.weight")
    assert (
        matrix.tensor_type.name == {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]
    )


def test_the_tokenizer_comes_along(llama, tmp_path):
    export(str(llama[1]), str(tmp_path / "m.gguf"), type="model")
    tokenizer, want = load_tokenizer(str(tmp_path / "m.gguf")), digit_tokenizer()
    text = "a  23\n   4<|im_end|>"
    assert tokenizer(text)["input_ids"] == want(text)["input_ids"]
    assert tokenizer.chat_template == want.chat_template
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<pad>")


def test_ids_without_a_token_are_filled(tmp_path):
    own = tiny_model("llama", vocab_size=len(digit_tokenizer()) + 3)
    own.save_pretrained(tmp_path / "base")
    digit_tokenizer().save_pretrained(tmp_path / "base")
    export(str(tmp_path / "base"), str(tmp_path / "m.gguf"), type="model")
    known = fields(tmp_path / "m.gguf")
    count = len(digit_tokenizer())
    assert known["tokenizer.ggml.tokens"][count:] == [f"[PAD{count + i}]" for i in range(3)]


def test_a_whole_model_is_exported_without_an_adapter(llama, tmp_path, capsys):
    export(str(llama[0]), str(tmp_path / "m.gguf"), type="model")
    assert "differ by at most 0 " in capsys.readouterr().out
    ckpt = write_adapter(llama[0], tmp_path / "full", Full())
    export(str(ckpt), str(tmp_path / "full.gguf"), type="model")
    model = load_base_model(str(tmp_path / "full.gguf"))
    assert_near(model(IDS).logits, load_base_model(str(ckpt))(IDS).logits)


def test_a_gguf_base_is_merged_and_exported(tmp_path):
    model = tiny_model("llama", vocab_size=len(digit_tokenizer()))
    file = write_gguf(tmp_path / "base.gguf", model, pre="starcoder")
    ckpt = write_adapter(file, tmp_path / "ckpt", LoRA(r=4))
    export(str(ckpt), str(tmp_path / "m.gguf"), type="model")
    assert fields(tmp_path / "m.gguf")["tokenizer.ggml.pre"] == "starcoder"
    adapted = load_base_model(str(file))
    load_adapter(adapted, ckpt)
    found = load_base_model(str(tmp_path / "m.gguf"))
    assert_near(found(IDS).logits, adapted(IDS).logits)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "base.gguf",
        "ckpt",
        "m.Modelfile",
        "m.gguf",
    ]


def test_a_sliding_window_shortens_the_context(tmp_path, capsys):
    base = write_base(tmp_path / "base", "mistral")
    export(str(base), str(tmp_path / "m.gguf"), type="model")
    assert "its context is 64 tokens: llama.cpp has no sliding window" in capsys.readouterr().out
    assert fields(tmp_path / "m.gguf")["llama.context_length"] == 64


def test_a_file_that_is_wrong_is_noticed(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(merged_weights, "add_update", lambda weight, *a, **k: weight.clone())
    with pytest.raises(RuntimeError, match="is not what was trained: its logits differ"):
        export(str(llama[1]), str(tmp_path / "m.gguf"), type="model")
    assert "its logits differ" in (tmp_path / "m.gguf.UNVERIFIED").read_text()


def test_a_verified_file_takes_the_mark_of_the_one_before_away(llama, tmp_path):
    (tmp_path / "m.gguf.UNVERIFIED").write_text("of an earlier file")
    export(str(llama[1]), str(tmp_path / "m.gguf"), type="model")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.Modelfile", "m.gguf"]


def test_a_file_whose_verification_was_cut_off_is_marked(llama, tmp_path, monkeypatch):
    def cut_off(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf_model, "compare_logits", cut_off)
    with pytest.raises(KeyboardInterrupt):
        export(str(llama[1]), str(tmp_path / "m.gguf"), type="model")
    assert "was not finished" in (tmp_path / "m.gguf.UNVERIFIED").read_text()


def test_trained_biases_are_in_the_file(tmp_path):
    base = write_base(tmp_path / "base", "qwen2")
    adapter = LoRA(r=2, target_modules=["q_proj"], bias="lora_only")
    ckpt = write_adapter(base, tmp_path / "ckpt", adapter)
    export(str(ckpt), str(tmp_path / "m.gguf"), type="model")
    name = "model.layers.0.self_attn.q_proj.bias"
    held = load_file(ckpt / "adapter_model.safetensors")
    trained = held["base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias"]
    assert_close(tensors(tmp_path / "m.gguf")["blk.0.attn_q.bias"], trained)
    assert not torch.equal(trained, load_base_model(str(base)).get_parameter(name))


# ---- how text is cut --------------------------------------------------------------------------


def cut_by(pre_tokenizer, **model):
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizer
    return json.loads(tokenizer.to_str())


def bytewise(use_regex=True, add_prefix_space=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=use_regex)


def split_by(pattern):
    parts = [pre_tokenizers.Split(Regex(pattern), "isolated"), bytewise(use_regex=False)]
    return pre_tokenizers.Sequence(parts)


def test_known_ways_to_cut_text_have_llamas_names():
    by_name = {name: pattern for pattern, name in SPLITS.items()}
    digits = pre_tokenizers.Digits(individual_digits=True)
    assert find_pre(cut_by(bytewise())) == "gpt-2"
    assert find_pre(cut_by(pre_tokenizers.Sequence([digits, bytewise()]))) == "smollm"
    assert find_pre(cut_by(split_by(by_name["qwen2"]))) == "qwen2"
    assert find_pre(cut_by(split_by(by_name["llama-bpe"]), ignore_merges=True)) == "llama-bpe"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (cut_by(split_by(r"\w+")), "cuts its text in a way that is not known here"),
        (cut_by(bytewise(add_prefix_space=True)), "give llama.cpp's name .* --tokenizer_pre"),
        (cut_by(bytewise(), ignore_merges=True), "not known here"),
        (cut_by(pre_tokenizers.Metaspace()), r"is a BPE after \['Metaspace'\], and only a BPE of"),
        (cut_by(bytewise(), byte_fallback=True), "only a BPE of bytes or of SentencePiece"),
    ],
)
def test_other_tokenizers_are_refused(content, message):
    with pytest.raises(ValueError, match=message):
        find_pre(content)


def test_the_users_name_for_the_cutting_is_taken(llama, tmp_path):
    export(str(llama[1]), str(tmp_path / "m.gguf"), type="model", tokenizer_pre="refact")
    assert fields(tmp_path / "m.gguf")["tokenizer.ggml.pre"] == "refact"


# ---- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("x.gguf", {"type": "lora"}, "type must be adapter or model, got 'lora'"),
        ("x.bin", {}, "out must be a file's name that ends in .gguf, got"),
        ("x.gguf", {"dtype": "int8"}, "dtype must be auto, "),
        ("x.gguf", {"text": "no.txt"}, "there is no file no.txt"),
        ("x.gguf", {"max_logit_difference": 0}, "max_logit_difference must be above 0, got 0"),
        ("x.gguf", {"device": "gpu"}, "device must be auto, cpu or a GPU .*, got 'gpu'"),
    ],
)
def test_a_wrong_option_is_named(llama, tmp_path, out, options, message):
    with pytest.raises(ValueError, match=message):
        export(str(llama[1]), str(tmp_path / out), **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("architecture", ["opt"])
@pytest.mark.parametrize("type", ["model", "adapter"])
def test_other_architectures_are_refused_by_name(architecture, type, tmp_path):
    tiny_model(architecture, vocab_size=len(digit_tokenizer())).save_pretrained(tmp_path / "base")
    digit_tokenizer().save_pretrained(tmp_path / "base")
    ckpt = write_adapter(tmp_path / "base", tmp_path / "ckpt", LoRA(r=2))
    with pytest.raises(ValueError, match=f"for a {architecture}.* model, only for llama, mistral"):
        export(str(ckpt), str(tmp_path / "m.gguf"), type=type)


def test_an_unknown_rope_is_refused(llama):
    config = LlamaConfig.from_pretrained(llama[0])
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    writer = gguf.GGUFWriter(None, "llama")
    with pytest.raises(ValueError, match="with rope_type dynamic"):
        Layout(config).add_parameters(writer)


def test_what_is_no_lora_is_refused(llama, tmp_path):
    prompt = write_adapter(llama[0], tmp_path / "p", PromptTuning(num_virtual_tokens=2))
    with pytest.raises(ValueError, match="is a PROMPT_TUNING adapter"):
        export(str(prompt), str(tmp_path / "x.gguf"))
    with pytest.raises(ValueError, match="is a whole model and no LoRA: export it with --type"):
        export(str(llama[0]), str(tmp_path / "x.gguf"))
    with pytest.raises(ValueError, match="is a whole model: give it without --base_model"):
        export(str(llama[0]), str(tmp_path / "x.gguf"), base_model="other")


@pytest.mark.parametrize("type", ["model", "adapter"])
def test_an_adapter_of_another_base_is_refused_unless_it_is_allowed(llama, tmp_path, type):
    tiny_model("llama", vocab_size=len(digit_tokenizer()), seed=7).save_pretrained(tmp_path / "b")
    digit_tokenizer().save_pretrained(tmp_path / "b")
    options = {"base_model": str(tmp_path / "b"), "type": type}
    with pytest.raises(ValueError, match="was trained on another base model"):
        export(str(llama[1]), str(tmp_path / "x.gguf"), **options)
    export(
        str(llama[1]),
        str(tmp_path / "x.gguf"),
        allow_base_mismatch=True,
        max_logit_difference=0.1,
        **options,
    )


def test_the_command_line_exports(llama, tmp_path):
    run = warm_python.run(["-m", "peft_lightning", "export", llama[1], tmp_path / "x.gguf"])
    assert (run.returncode, "exported: " in run.stdout) == (0, True), run.stderr


# ---- llama.cpp --------------------------------------------------------------------------------


def llama_cpp():
    reason = "needs llama-cpp-python: pip install peft_lightning[llama]"
    return pytest.importorskip("llama_cpp", reason=reason, exc_type=ImportError)


def answers_of_llama(rows, count, **options):
    """Return the greedy tokens that llama.cpp adds to each row, and the row's last logits."""
    kept = {"type_k": 0, "type_v": 0}  # keys and values in float32
    options = {"n_ctx": 64, "logits_all": True, "verbose": False, "n_threads": 1, **kept, **options}
    model = llama_cpp().Llama(**options)
    answers, last = [], []
    for row in rows:
        model.reset()
        model.eval(row)
        last.append(torch.tensor(model.scores[len(row) - 1]))
        model.reset()
        found = model.generate(row, top_k=1, temp=0.0, repeat_penalty=1.0)
        answers.append([token for _, token in zip(range(count), found, strict=False)])
    return answers, torch.stack(last)


@pytest.mark.llama
def test_llama_answers_as_we_do_from_a_lora_and_from_a_merged_file(base, tmp_path):
    llama_cpp()
    ckpt = write_adapter(base, tmp_path / "ckpt", LORAS["both"])
    paths = {name: str(tmp_path / f"{name}.gguf") for name in ("base", "lora", "merged")}
    export(str(base), paths["base"], type="model", verify=False)
    export(str(ckpt), paths["lora"])
    export(str(ckpt), paths["merged"], type="model", verify=False)
    model = load_base_model(str(base))
    load_adapter(model, ckpt)
    rows = [[5, 9, 30, 77, 120], list(range(20, 40)), [200, 4]]
    with torch.no_grad():
        logits = torch.stack([model(torch.tensor([row])).logits[0, -1] for row in rows])
    ways = (
        {"model_path": paths["base"], "lora_path": paths["lora"]},
        {"model_path": paths["merged"]},
    )
    for way in ways:
        answers, found = answers_of_llama(rows, 12, **way)
        assert_close(found, logits, rtol=0, atol=NEAR)
        for row, answer in zip(rows, answers, strict=True):
            with torch.no_grad():
                ours = model(torch.tensor([row + answer])).logits[0, len(row) - 1 : -1]
            chosen = ours.gather(1, torch.tensor(answer)[:, None])[:, 0]
            assert (chosen >= ours.max(dim=1).values - NEAR).all()


@pytest.mark.llama
def test_llama_cuts_text_as_our_tokenizer_does(llama, tmp_path):
    module = llama_cpp()
    export(str(llama[1]), str(tmp_path / "m.gguf"), type="model", verify=False)
    model = module.Llama(str(tmp_path / "m.gguf"), vocab_only=True, verbose=False)
    text = "a  23\n   4 naïve<|im_end|>\n"
    assert (
        model.tokenize(text.encode(), add_bos=True, special=True)
        == digit_tokenizer()(text)["input_ids"]
    )
