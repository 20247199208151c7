"""P-tuning and prefix tuning from nothing: HF PEFT's encoders, texts as prefixes, resumed."""

import copy

import pytest
import torch
from peft import PrefixTuningConfig, PromptEncoderConfig, get_peft_model
from safetensors.torch import load_file
from transformers import DynamicCache

from parity import IDS, hf_reads
from peft_lightning import PrefixTuning, PTuning, UserError, load_adapter, save_adapter
from peft_lightning.adapters.disable import disable_adapter
from peft_lightning.adapters.prompts.encoders import virtual_tokens
from processes import in_processes, outcome, resumed_and_whole, run
from rounding import BACKWARD, assert_near
from tiny import ARCHITECTURES, tiny_model
from tiny_run import byte_tokenizer, write_base, write_rows

N = 5
METHODS = {
    "p-tuning": (
        PTuning(N, encoder_hidden_size=12),
        PromptEncoderConfig(num_virtual_tokens=N, encoder_hidden_size=12),
    ),
    "p-tuning, LSTM": (
        PTuning(N, "LSTM", encoder_hidden_size=6, encoder_num_layers=1),
        PromptEncoderConfig(
            num_virtual_tokens=N,
            encoder_reparameterization_type="LSTM",
            encoder_hidden_size=6,
            encoder_num_layers=1,
        ),
    ),
    "prefix": (PrefixTuning(N), PrefixTuningConfig(num_virtual_tokens=N)),
    "prefix, projected": (
        PrefixTuning(N, prefix_projection=True, encoder_hidden_size=12),
        PrefixTuningConfig(num_virtual_tokens=N, prefix_projection=True, encoder_hidden_size=12),
    ),
}
ENCODED = [name for name in METHODS if name != "prefix"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Position ids are not supported"),
]


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


def text_logits(adapter, model, ids=IDS, **batch):
    inputs = adapter.prepare_inputs(model, {"input_ids": ids, **batch})
    return model(**inputs).logits[:, -ids.shape[1] :]


def loss_of(logits):
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_an_encoder_is_hf_pefts_forwards_and_backwards(method, architecture):
    adapter, config = method[0], copy.deepcopy(method[1])  # HF PEFT fills it in
    config.task_type = "CAUSAL_LM"
    peft = get_peft_model(tiny_model(architecture, torch.float64), config)
    theirs = peft.prompt_encoder["default"].double()
    model = tiny_model(architecture, torch.float64)
    adapter.attach(model)
    if hasattr(model, "prompt_encoder"):
        model.prompt_encoder.load_state_dict(theirs.state_dict())
    else:
        model.prompt_embeddings.data.copy_(theirs.embedding.weight)
    expected = peft(IDS).logits[:, -IDS.shape[1] :]
    found = text_logits(adapter, model)
    assert_near(found, expected)
    for logits in (expected, found):
        loss_of(logits).backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all("prompt_e" in name for name in trained)
    for name, parameter in theirs.named_parameters():
        own = trained.get(f"prompt_encoder.{name}", getattr(model, "prompt_embeddings", None))
        assert_near(own.grad, parameter.grad, products=2 * BACKWARD)


def test_hf_peft_reads_what_was_trained_and_ours_goes_on_with_the_encoder(method, tmp_path):
    adapter, _ = method
    model = tiny_model("llama")
    adapter.attach(model)
    save_adapter(adapter, model, tmp_path)
    expected = text_logits(adapter, model.eval())
    theirs = hf_reads(tmp_path, "llama")(IDS).logits[:, -IDS.shape[1] :]
    assert_near(theirs, expected)
    fresh = tiny_model("llama")
    loaded = load_adapter(fresh, tmp_path, trainable=True)
    assert type(loaded) is type(adapter)
    assert torch.equal(text_logits(loaded, fresh.eval()), expected)
    trained = {n for n, p in fresh.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in model.named_parameters() if p.requires_grad}
    loaded.detach(fresh)
    assert not hasattr(fresh, "prompt_encoder")
    assert torch.equal(fresh(IDS).logits, tiny_model("llama")(IDS).logits)


def test_without_its_encoder_p_tuning_trains_what_one_has_made():
    adapter, model = PTuning(N, trains_encoder=False), tiny_model("llama")
    adapter.attach(model)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"prompt_embeddings"}
    assert model.prompt_embeddings.any()
    loss_of(text_logits(adapter, model)).backward()
    assert model.prompt_embeddings.grad.any()


def test_what_is_saved_has_no_dropout(tmp_path):
    adapter = PTuning(N, "LSTM", 6, 2, 0.5)
    model = tiny_model("llama")
    adapter.attach(model)
    model.train()
    assert not torch.equal(virtual_tokens(model), virtual_tokens(model))
    saved = [adapter.state_dict(model)["prompt_embeddings"] for _ in range(2)]
    assert torch.equal(*saved)
    assert model.prompt_encoder.training
    assert torch.equal(virtual_tokens(model.eval()), saved[0])


def test_a_disabled_encoder_does_nothing_and_is_there_again():
    adapter = PTuning(N)
    model = tiny_model("llama")
    adapter.attach(model)
    expected = text_logits(adapter, model)
    with disable_adapter(model):
        assert torch.equal(model(IDS).logits, tiny_model("llama")(IDS).logits)
    assert torch.equal(text_logits(adapter, model), expected)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("rows", ["equal", "padded"])
def test_a_prefix_that_begins_as_a_text_is_that_text(architecture, rows, tokenizer):
    ids = byte_tokenizer()("abc")["input_ids"][:3]
    model = tiny_model(architecture, torch.float64, vocab_size=260)
    adapter = PrefixTuning(len(ids), init_text="abc", tokenizer_name_or_path=tokenizer)
    text = torch.tensor(ids).expand(len(IDS), -1)
    mask = torch.ones_like(IDS)
    if rows == "padded":
        mask[1, -2:] = 0
    whole = torch.cat([torch.ones_like(text), mask], 1)
    expected = model(torch.cat([text, IDS], 1), attention_mask=whole).logits[:, len(ids) :]
    adapter.attach(model)
    found = text_logits(adapter, model, attention_mask=mask)
    assert_near(found * mask[..., None], expected * mask[..., None])


def test_a_short_text_is_repeated(tokenizer):
    model = tiny_model("llama", vocab_size=260)
    many = PrefixTuning(6, init_text="ab", tokenizer_name_or_path=tokenizer)
    many.attach(model)
    assert model.prompt_embeddings.shape[0] == 6


def test_a_random_prefix_has_the_size_of_the_bases_own_keys_and_values():
    model = tiny_model("llama")
    PrefixTuning(200).attach(model)
    found = model.prompt_embeddings.detach().view(200, -1)
    cache = DynamicCache()
    model(input_ids=torch.arange(128)[:, None], past_key_values=cache, use_cache=True)
    parts = [p[:, :, 0].flatten(1) for layer in cache.layers for p in (layer.keys, layer.values)]
    expected = torch.cat(parts, 1)
    assert (found.std(0) / expected.std(0)).log().abs().max() < 0.4  # 6 deviations of 1/sqrt(400)
    other = tiny_model("llama")
    PrefixTuning(3, init_weights="zero").attach(other)
    assert not other.prompt_embeddings.any()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PTuning(N, "GRU"), "encoder_reparameterization_type"),
        (lambda: PTuning(N, encoder_hidden_size=0), "encoder_hidden_size must be at least 1"),
        (lambda: PTuning(N, encoder_dropout=1.0), r"encoder_dropout must be in \[0, 1\)"),
        (lambda: PrefixTuning(N, init_weights="one"), "init_weights must be zero, or left out"),
        (lambda: PrefixTuning(N, tokenizer_name_or_path="x"), "give a text, too"),
        (
            lambda: PrefixTuning(N, prefix_projection=True, init_text="x"),
            "leave out prefix_projection",
        ),
        (lambda: PrefixTuning(N, init_weights="zero", init_text="x"), "leave out init_weights"),
        (
            lambda: PrefixTuning(N, init_text="x").attach(tiny_model("llama")),
            "init_text needs tokenizer_name_or_path",
        ),
    ],
)
def test_wrong_inputs_are_named(make, said):
    with pytest.raises(UserError, match=said):
        make()


# ---- runs --------------------------------------------------------------------------------------

RUNS = {
    "mlp": ["PTuning", {"num_virtual_tokens": 3, "encoder_hidden_size": 8}],
    "lstm": [
        "PTuning",
        {
            "num_virtual_tokens": 3,
            "encoder_reparameterization_type": "LSTM",
            "encoder_hidden_size": 8,
            "encoder_dropout": 0.2,
        },
    ],
    "prefix": ["PrefixTuning", {"num_virtual_tokens": 3}],
    "text": ["PrefixTuning", {"num_virtual_tokens": 3, "init_text": "say ok"}],
    "projected": ["PrefixTuning", {"num_virtual_tokens": 3, "prefix_projection": True}],
}


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_is_bit_for_bit_the_undisturbed_one(tmp_path, base, rows, name):
    files = resumed_and_whole(tmp_path, base, rows, RUNS[name])
    ours, expected = map(load_file, files)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], expected[key]) for key in expected)


def test_two_processes_train_the_encoder_of_one(tmp_path):
    base = write_base(tmp_path / "gpt2", "gpt2", torch.float64)
    options = {"base": str(base), "rows": str(write_rows(tmp_path / "9.jsonl", 9))}
    both = {}
    for name in ("mlp", "projected"):
        one = {**options, "adapter": RUNS[name]}
        run(tmp_path / name, {**one, "data": {"batch_size": 4}}, 1)
        two = {**one, "data": {"batch_size": 2}}
        both |= {f"{name} {s}": {**two, "trainer": {"strategy": s}} for s in ("ddp", "fsdp2")}
    in_processes(2, tmp_path, both)
    for done in both:
        assert outcome(tmp_path, done)["error"] is None
        expected = load_file(tmp_path / done.split()[0] / "weights.safetensors")
        ours = load_file(tmp_path / done / "weights.safetensors")
        assert ours.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(ours[key], tensor, rtol=1e-7, atol=1e-9)
