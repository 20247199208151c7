"""Prompt tuning beside HF PEFT's: the same files, numbers, steps and texts."""

import pytest
import torch
from peft import PromptTuningConfig
from peft.utils import get_peft_model_state_dict

from parity import (
    IDS,
    config_as_hf_reads_it,
    config_json,
    hf_folder,
    hf_reads,
    keys_and_shapes,
    metadata,
    our_folder,
)
from peft_lightning.adapters import PromptTuning, load_adapter, save_adapter
from rounding import assert_first_adam_step, assert_near
from tiny import tiny_model

N = 5

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


@pytest.fixture(params=["llama", "gpt2"])
def architecture(request):
    return request.param


@pytest.fixture(params=["RANDOM", "SAMPLE_VOCAB"])
def init(request):
    return request.param


def hf_config(init="RANDOM"):
    return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=N, prompt_tuning_init=init)


def our_logits(adapter, model):
    """Return the logits of the text, without those of the virtual tokens."""
    return model(**adapter.prepare_inputs(model, {"input_ids": IDS})).logits[:, N:]


def test_each_reads_the_other_and_the_files_are_the_same(init, architecture, tmp_path):
    adapter, model = PromptTuning(N, init), tiny_model(architecture)
    ours, theirs = our_folder(adapter, model, tmp_path / "ours"), tmp_path / "theirs"
    peft = hf_folder(hf_config(init), tiny_model(architecture), theirs)
    assert keys_and_shapes(ours) == keys_and_shapes(theirs)
    assert keys_and_shapes(ours) == {"prompt_embeddings": ((N, 32), torch.float32)}
    assert metadata(ours) == metadata(theirs)
    assert config_json(ours) == config_json(theirs)
    assert config_as_hf_reads_it(ours) == config_as_hf_reads_it(theirs)
    logits = our_logits(adapter, model)
    assert_near(hf_reads(ours, architecture)(IDS).logits[:, N:], logits)
    fresh = tiny_model(architecture)
    loaded = load_adapter(fresh, theirs)
    assert loaded == adapter
    assert_near(our_logits(loaded, fresh), peft(IDS).logits[:, N:])
    assert (logits - tiny_model(architecture)(IDS).logits).abs().max() > 0.1


def test_a_bfloat16_base_keeps_a_float32_file(tmp_path):
    ours = our_folder(PromptTuning(N), tiny_model("llama", torch.bfloat16), tmp_path / "ours")
    hf_folder(hf_config(), tiny_model("llama", torch.bfloat16), tmp_path / "theirs")
    assert keys_and_shapes(ours) == keys_and_shapes(tmp_path / "theirs")
    assert hf_reads(ours, "llama", dtype=torch.bfloat16)(IDS).logits.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_adamw_step_equals_hf_pefts(architecture, dtype, tmp_path):
    peft = hf_folder(hf_config(), tiny_model(architecture, dtype), tmp_path)
    ours = tiny_model(architecture, dtype)
    adapter = load_adapter(ours, tmp_path, trainable=True)
    batch = {"input_ids": IDS, "labels": IDS, "attention_mask": torch.ones_like(IDS)}
    start = adapter.state_dict(ours)["prompt_embeddings"].clone()
    for model, inputs in ((ours, adapter.prepare_inputs(ours, batch)), (peft, batch)):
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        model(**inputs).loss.backward()
        optimizer.step()
    moved = adapter.state_dict(ours)["prompt_embeddings"]
    expected = get_peft_model_state_dict(peft)["prompt_embeddings"]
    # AdamW's first step moves each weight by the learning rate
    assert (moved - start).abs().max() > 9e-3
    assert_first_adam_step(moved, expected, ours.prompt_embeddings.grad, rate=1e-2)


def test_greedy_texts_equal_hf_pefts(architecture, tmp_path):
    adapter, model = PromptTuning(N), tiny_model(architecture)
    ours = our_folder(adapter, model, tmp_path)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(IDS)
    inputs = adapter.prepare_inputs(model, {"input_ids": IDS, "attention_mask": mask})
    texts = model.generate(**inputs, **options)
    theirs = hf_reads(ours, architecture).generate(input_ids=IDS, attention_mask=mask, **options)
    assert torch.equal(texts, theirs[:, IDS.shape[1] :])
    plain = tiny_model(architecture).generate(input_ids=IDS, **options)
    assert not torch.equal(texts, plain[:, IDS.shape[1] :])


def test_a_text_prompt_is_loaded_without_its_tokenizer(tmp_path):
    adapter, model = PromptTuning(N, "TEXT", "hello", "a/tokenizer"), tiny_model("llama")
    adapter.attach(model, initialise=False)
    adapter.state_dict(model)["prompt_embeddings"].fill_(0.5)
    save_adapter(adapter, model, tmp_path / "ours")
    assert (
        hf_reads(tmp_path / "ours", "llama").active_peft_config.prompt_tuning_init_text == "hello"
    )
    fresh = tiny_model("llama")
    assert load_adapter(fresh, tmp_path / "ours") == adapter
    assert fresh.prompt_embeddings.unique().tolist() == [0.5]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_transformer_submodules": 2}, "sets num_transformer_submodules=2"),
        ({"modules_to_save": ["a"]}, r"sets modules_to_save=\['a'\], which PromptTuning does not"),
        ({"num_virtual_tokens": None}, "num_virtual_tokens must be a whole number"),
    ],
)
def test_what_is_not_implemented_is_named(fields, message):
    config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3, **fields}
    with pytest.raises(ValueError, match=message):
        PromptTuning.from_hf_config(config)
