"""P-tuning and prefix tuning: the folders that HF PEFT writes, read, answered with, trained on."""

import numpy as np
import pytest
import torch
from peft import PrefixTuningConfig, PromptEncoderConfig
from torch.testing import assert_close

from parity import (
    IDS,
    config_as_hf_reads_it,
    config_json,
    hf_folder,
    hf_reads,
    keys_and_shapes,
    metadata,
)
from peft_lightning.adapters import (
    PrefixTuning,
    PTuning,
    attached_adapter,
    load_adapter,
    save_adapter,
)
from peft_lightning.data.collate import padded_collate
from peft_lightning.inference.generate import generate_tokens
from rounding import FORWARD, assert_first_adam_step, assert_near
from tiny import ARCHITECTURES, tiny_model
from tiny_run import byte_tokenizer

N = 5
CONFIGS = {
    "p-tuning": (PromptEncoderConfig, {"encoder_hidden_size": 12}),
    "p-tuning, LSTM": (
        PromptEncoderConfig,
        {"encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 6},
    ),
    "prefix": (PrefixTuningConfig, {}),
    "prefix, projected": (
        PrefixTuningConfig,
        {"prefix_projection": True, "encoder_hidden_size": 12},
    ),
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Position ids are not supported"),
]


@pytest.fixture(params=CONFIGS)
def method(request):
    return request.param


def theirs(method, architecture, folder, dtype=torch.float32):
    kind, options = CONFIGS[method]
    config = kind(task_type="CAUSAL_LM", num_virtual_tokens=N, **options)
    return hf_folder(config, tiny_model(architecture, dtype), folder)


def text_logits(adapter, model, ids=IDS, **batch):
    """Return the logits of the text, without those of virtual tokens."""
    inputs = adapter.prepare_inputs(model, {"input_ids": ids, **batch})
    return model(**inputs).logits[:, -ids.shape[1] :]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_their_folder_computes_their_logits(method, architecture, tmp_path):
    peft = theirs(method, architecture, tmp_path)
    model = tiny_model(architecture)
    adapter = load_adapter(model, tmp_path)
    assert type(adapter) is (PrefixTuning if "prefix" in method else PTuning)
    expected = peft(IDS).logits[:, -IDS.shape[1] :]
    assert_near(text_logits(adapter, model), expected)
    assert (expected - tiny_model(architecture)(IDS).logits).abs().max() > 0.1


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_our_folder_is_theirs(method, architecture, dtype, tmp_path):
    peft = theirs(method, architecture, tmp_path / "theirs", dtype)
    model = tiny_model(architecture, dtype)
    adapter = load_adapter(model, tmp_path / "theirs")
    save_adapter(adapter, model, tmp_path / "ours")
    ours, other = tmp_path / "ours", tmp_path / "theirs"
    assert keys_and_shapes(ours) == keys_and_shapes(other)
    assert keys_and_shapes(ours)["prompt_embeddings"][1] == torch.float32
    assert metadata(ours) == metadata(other)
    assert config_json(ours) == config_json(other)
    assert config_as_hf_reads_it(ours) == config_as_hf_reads_it(other)
    found = hf_reads(ours, architecture, dtype=dtype)(IDS).logits
    assert_near(found, peft(IDS).logits)  # theirs has an encoder still


ROWS = [[5, 9, 23, 7], [11, 3], [30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_texts_equal_theirs_alone_and_in_a_padded_batch(method, architecture, tmp_path):
    peft = theirs(method, architecture, tmp_path)
    model = tiny_model(architecture)
    adapter = load_adapter(model, tmp_path)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    together = generate_tokens(model, adapter, byte_tokenizer(), ROWS, 5, end_ids=[])
    for answer, row in zip(together, ROWS, strict=True):
        ids = torch.tensor([row])
        alone = model.generate(**adapter.prepare_inputs(model, {"input_ids": ids}), **options)
        assert alone[0, -5:].tolist() == answer
        mask = torch.ones_like(ids)
        hf = peft.generate(input_ids=ids, attention_mask=mask, **options)
        assert hf[0, -5:].tolist() == answer


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_right_padding_changes_no_logits(method, architecture, tmp_path):
    theirs(method, architecture, tmp_path)
    model = tiny_model(architecture)
    adapter = load_adapter(model, tmp_path)
    rows = [{"input_ids": np.array(row), "labels": np.array(row)} for row in ROWS]
    logits = model(**adapter.prepare_inputs(model, padded_collate(rows, 0))).logits
    start = logits.shape[1] - max(map(len, ROWS))  # of the text
    for row, found in zip(ROWS, logits, strict=True):
        alone = text_logits(adapter, model, torch.tensor([row]))[0]
        assert_near(found[start : start + len(row)], alone)


@pytest.mark.parametrize("method", ["p-tuning", "prefix"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_one_adamw_step_from_what_the_folder_holds_is_that_of_its_logits(
    method, architecture, dtype, tmp_path
):
    peft = theirs(method, architecture, tmp_path, dtype)
    model = tiny_model(architecture, dtype)
    adapter = load_adapter(model, tmp_path, trainable=True)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["prompt_embeddings"]
    start = model.prompt_embeddings.detach().clone()
    optimizer = torch.optim.AdamW([model.prompt_embeddings], lr=1e-2, weight_decay=0)
    batch = {"input_ids": IDS, "labels": IDS}
    loss = model(**adapter.prepare_inputs(model, batch)).loss
    loss.backward()
    optimizer.step()
    assert_near(loss, peft(input_ids=IDS, labels=IDS).loss)
    if method == "prefix":  # theirs trains that same tensor
        trained = [p for p in peft.parameters() if p.requires_grad]
        other = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0)
        peft(input_ids=IDS, labels=IDS).loss.backward()
        other.step()
        ours, expected = model.prompt_embeddings, trained[0].data
        assert_first_adam_step(ours.data, expected, ours.grad, rate=1e-2)
    # AdamW's first step moves each weight by the learning rate
    assert_close((model.prompt_embeddings - start).abs().max().item(), 1e-2, rtol=0.01, atol=0)


def test_detach_gives_the_base_and_a_bank_mixes_them(tmp_path):
    from peft_lightning.adapters import AdapterBank

    model = tiny_model("llama")
    before = model(IDS).logits
    bank = AdapterBank(model)
    for method in CONFIGS:
        theirs(method, "llama", tmp_path / method)
        bank.add(method, tmp_path / method)
    found = {}
    for method in [*CONFIGS, *reversed(CONFIGS)]:
        adapter = bank.use(method)
        logits = text_logits(adapter, model)
        assert torch.equal(found.setdefault(method, logits), logits)
        assert not model.prompt_embeddings.requires_grad
    bank.use("base")
    assert attached_adapter(model) is None
    assert not hasattr(model, "_prefix_shape")
    assert torch.equal(model(IDS).logits, before)


def test_a_prefix_needs_equal_keys_and_values_in_every_layer():
    from transformers import AutoModelForCausalLM, MambaConfig

    config = MambaConfig(vocab_size=32, hidden_size=16, state_size=4, num_hidden_layers=2)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match="in every layer, and MambaForCausalLM does not have"):
        PrefixTuning(N).attach(model, initialise=False)
    assert all(p.requires_grad for p in model.parameters())


def test_a_prefix_of_another_shape_is_named(tmp_path):
    theirs("prefix", "gpt2", tmp_path)  # 4 heads of keys, not 2
    message = r"prompt_embeddings \(5, 128\) instead of \(5, 64\)"
    with pytest.raises(ValueError, match=message):
        load_adapter(tiny_model("llama"), tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_prefix_is_read_in_the_dtype_of_a_base_of_half_precision(dtype, tmp_path):
    theirs("prefix", "llama", tmp_path)
    exact, model = tiny_model("llama"), tiny_model("llama", dtype)
    for each in (exact, model):
        adapter = load_adapter(each, tmp_path)
    found = text_logits(adapter, model)
    assert found.dtype == dtype
    expected = text_logits(adapter, exact)
    # the result of each product is rounded to this dtype
    allowed = FORWARD * torch.finfo(dtype).eps * expected.norm()
    assert (found.float() - expected).norm() < allowed
