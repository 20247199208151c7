import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from peft_lightning.adapters import PromptTuning, attached_adapter
from rounding import assert_near
from tiny import ARCHITECTURES, tiny_model
from tiny_configs import tiny_config

ROWS = [[5, 9, 23, 7], [11, 3], [30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40]]
N = 3


def attached(architecture, n=N, **kwargs):
    """Return a model and the adapter in it, with an initial prompt of the vocabulary's scale."""
    model = tiny_model(architecture)
    adapter = PromptTuning(num_virtual_tokens=n, prompt_tuning_init="SAMPLE_VOCAB", **kwargs)
    torch.manual_seed(0)
    adapter.attach(model)
    return model, adapter


def flat_batch(rows):
    lengths = [len(row) for row in rows]
    ids = torch.tensor([token for row in rows for token in row])[None]
    labels = torch.where(ids % 2 == 1, ids, -100)
    return {
        "input_ids": ids,
        "labels": labels,
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens": torch.tensor([0, *lengths]).cumsum(0).int(),
        "seq_lens": lengths,
    }


def padded_batch(rows, side, labels=True):
    longest = max(len(row) for row in rows)

    def pad(row, value):
        filling = [value] * (longest - len(row))
        return row + filling if side == "right" else filling + row

    ids = torch.tensor([pad(row, 0) for row in rows])
    mask = torch.tensor([pad([1] * len(row), 0) for row in rows])
    batch = {"input_ids": ids, "attention_mask": mask}
    return {**batch, "labels": torch.where(mask == 1, ids, -100)} if labels else batch


def by_hand(model, row):
    """The definition: the virtual tokens, then the embedded text of one sequence."""
    embedded = model.get_input_embeddings()(torch.tensor(row))
    return torch.cat([model.prompt_embeddings.to(embedded.dtype), embedded])[None]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_prompt_of_vocabulary_rows_is_read_as_these_tokens_and_detach_gives_the_base(
    architecture,
):
    model = tiny_model(architecture)
    ids = torch.tensor(ROWS[:1])
    before = model(ids).logits
    torch.manual_seed(0)
    adapter = PromptTuning(num_virtual_tokens=N, prompt_tuning_init="sample_vocab")
    adapter.attach(model)
    torch.manual_seed(0)
    tokens = torch.randint(128, (N,))
    logits = model(**adapter.prepare_inputs(model, {"input_ids": ids})).logits
    expected = model(torch.cat([tokens[None], ids], dim=1)).logits
    assert_near(logits, expected)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["prompt_embeddings"]
    adapter.detach(model)
    assert not hasattr(model, "prompt_embeddings")
    assert torch.equal(model(ids).logits, before)
    assert attached_adapter(model) is None


def test_flat_batches_hold_prompt_and_text_of_each_sequence():
    model, adapter = attached("llama")
    batch = flat_batch(ROWS)
    inputs = adapter.prepare_inputs(model, batch)
    assert "input_ids" not in inputs
    assert inputs["seq_lens"] == [len(row) + N for row in ROWS]
    ends = [0, 7, 12, 26]
    assert inputs["cu_seq_lens"].tolist() == ends
    assert inputs["cu_seq_lens"].dtype == torch.int32
    labels = batch["labels"].split(batch["seq_lens"], dim=1)
    for i, row in enumerate(ROWS):
        part = slice(ends[i], ends[i + 1])
        assert torch.equal(inputs["inputs_embeds"][:, part], by_hand(model, row))
        assert inputs["labels"][0, part].tolist() == [-100] * N + labels[i][0].tolist()
        assert inputs["position_ids"][0, part].tolist() == list(range(len(row) + N))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gpt_neox"])
def test_flat_batches_give_the_logits_of_each_sequence_alone(architecture):
    model, adapter = attached(architecture)
    inputs = adapter.prepare_inputs(model, flat_batch(ROWS))
    sequence = torch.arange(len(ROWS)).repeat_interleave(torch.tensor(inputs["seq_lens"]))
    allowed = (sequence[:, None] == sequence) & torch.ones(26, 26, dtype=torch.bool).tril()
    mask = torch.where(allowed, 0.0, -torch.inf)[None, None]
    logits = model(
        inputs_embeds=inputs["inputs_embeds"],
        position_ids=inputs["position_ids"],
        attention_mask=mask,
    ).logits
    for row, part in zip(ROWS, logits.split(inputs["seq_lens"], dim=1), strict=True):
        alone = model(inputs_embeds=by_hand(model, row)).logits
        assert_near(part, alone)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gemma3"])
def test_right_padded_batches_give_the_logits_of_each_sequence_alone(architecture):
    model, adapter = attached(architecture)
    inputs = adapter.prepare_inputs(model, padded_batch(ROWS, "right"))
    assert inputs["labels"][1].tolist() == [-100] * N + [11, 3] + [-100] * 9
    assert inputs["attention_mask"].sum(1).tolist() == [len(row) + N for row in ROWS]
    assert "position_ids" not in inputs
    logits = model(**{k: v for k, v in inputs.items() if k != "labels"}).logits
    for i, row in enumerate(ROWS):
        alone = model(inputs_embeds=by_hand(model, row)).logits
        assert_near(logits[i : i + 1, : len(row) + N], alone)


def test_left_padding_comes_before_the_prompt():
    model, adapter = attached("llama")
    inputs = adapter.prepare_inputs(model, padded_batch(ROWS, "left", labels=False))
    assert set(inputs) == {"inputs_embeds", "attention_mask"}
    assert inputs["attention_mask"][1].tolist() == [0] * 9 + [1] * (N + 2)
    for i, row in enumerate(ROWS):
        assert torch.equal(inputs["inputs_embeds"][i : i + 1, -N - len(row) :], by_hand(model, row))


def test_positions_of_a_padded_batch_move_by_the_prompt():
    model, adapter = attached("llama")
    batch = padded_batch(ROWS[:2], "left", labels=False)
    batch["position_ids"] = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 1]])
    positions = adapter.prepare_inputs(model, batch)["position_ids"]
    assert positions[0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert positions[1, -N - 2 :].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_left_padded_generation_equals_that_of_each_row_alone(architecture):
    model, adapter = attached(architecture)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    batch = padded_batch(ROWS, "left", labels=False)
    together = model.generate(**adapter.prepare_inputs(model, batch), **options)
    assert together.shape == (3, 6)
    for i, row in enumerate(ROWS):
        alone = adapter.prepare_inputs(model, {"input_ids": torch.tensor([row])})
        assert torch.equal(model.generate(**alone, **options)[0], together[i])


def test_a_batch_is_left_as_it_was_and_other_keys_pass():
    model, adapter = attached("llama")
    batch = {**flat_batch(ROWS), "index": [1, 2, 3]}
    copied = dict(batch)
    assert adapter.prepare_inputs(model, batch)["index"] == [1, 2, 3]
    assert all(batch[key] is copied[key] for key in batch)
    assert batch["seq_lens"] == [len(row) for row in ROWS]


def test_the_prompt_gets_the_sum_of_the_gradients_of_its_places():
    model, adapter = attached("llama")
    inputs = adapter.prepare_inputs(model, flat_batch(ROWS))
    weights = torch.randn_like(inputs["inputs_embeds"])
    (inputs["inputs_embeds"] * weights).sum().backward()
    starts = [0, 7, 12]
    expected = sum(weights[0, start : start + N] for start in starts)
    assert_close(model.prompt_embeddings.grad, expected)


def test_the_prompt_is_float32_over_a_bfloat16_base_which_reads_it_in_its_dtype():
    model = tiny_model("llama", torch.bfloat16)
    adapter = PromptTuning(num_virtual_tokens=N)
    adapter.attach(model)
    assert adapter.state_dict(model)["prompt_embeddings"].dtype == torch.float32
    inputs = adapter.prepare_inputs(model, flat_batch(ROWS))
    assert inputs["inputs_embeds"].dtype == torch.bfloat16
    inputs["inputs_embeds"].sum().backward()
    assert model.prompt_embeddings.grad.dtype == torch.float32


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_random_prompt_has_the_scale_of_what_the_model_reads(architecture):
    model = tiny_model(architecture)
    torch.manual_seed(0)
    PromptTuning(num_virtual_tokens=200).attach(model)
    read = model.get_input_embeddings()(torch.arange(128))  # Gemma scales by sqrt(dim)
    prompt = model.prompt_embeddings
    # 6,400 numbers: the deviation's own relative deviation is 1/sqrt(12800) = 0.9 %
    assert prompt.std().item() == pytest.approx(read.std().item(), rel=0.04)
    assert abs(prompt.mean().item()) < 0.06 * prompt.std().item()


def test_one_seed_gives_one_prompt():
    def drawn(seed):
        model = tiny_model("llama")
        torch.manual_seed(seed)
        PromptTuning().attach(model)
        return model.prompt_embeddings

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


@pytest.fixture
def tokenizer_folder(tmp_path):
    words = ["[UNK]", "turn", "on", "the", "light"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]").save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("n", "ids"), [(2, [1, 2]), (4, [1, 2, 3, 4]), (9, [1, 2, 3, 4, 1, 2, 3, 4, 1])]
)
def test_a_text_is_cut_or_repeated_to_length(n, ids, tokenizer_folder):
    model = tiny_model("llama")
    adapter = PromptTuning(n, "text", "turn on the light", tokenizer_folder)
    adapter.attach(model)
    assert torch.equal(model.prompt_embeddings, model.get_input_embeddings()(torch.tensor(ids)))
    assert adapter.hf_config(model)["tokenizer_name_or_path"] == tokenizer_folder


def test_the_tokenizer_is_the_base_models_own_unless_one_is_given(tokenizer_folder):
    adapter = PromptTuning(2, "TEXT", "the light")
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="TEXT needs tokenizer_name_or_path"):
        adapter.attach(model)
    model.config.name_or_path = tokenizer_folder
    adapter.attach(model)
    assert torch.equal(model.prompt_embeddings, model.get_input_embeddings()(torch.tensor([3, 4])))
    assert adapter.hf_config(model)["tokenizer_name_or_path"] == tokenizer_folder


def test_a_text_without_tokens_and_remote_code_are_refused(tokenizer_folder):
    with pytest.raises(ValueError, match="' ' has no tokens"):
        PromptTuning(2, "TEXT", " ", tokenizer_folder).attach(tiny_model("llama"))
    remote = PromptTuning(2, "TEXT", "a", tokenizer_folder, {"trust_remote_code": True})
    with pytest.raises(ValueError, match="cannot set trust_remote_code"):
        remote.attach(tiny_model("llama"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"num_virtual_tokens": 0},
            "num_virtual_tokens must be a whole number of at least 1, got 0",
        ),
        ({"prompt_tuning_init": "VOCAB"}, "got 'VOCAB'; did you mean SAMPLE_VOCAB"),
        ({"prompt_tuning_init": "TEXT"}, "TEXT needs prompt_tuning_init_text"),
        ({"prompt_tuning_init_text": "hi"}, "prompt_tuning_init_text is used only with .* RANDOM"),
        ({"tokenizer_kwargs": {"a": 1}}, "tokenizer_kwargs is used only with"),
    ],
)
def test_a_bad_value_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        PromptTuning(**fields)


def test_a_tokenizer_that_is_not_there_is_one_line():
    adapter = PromptTuning(
        prompt_tuning_init="TEXT", prompt_tuning_init_text="hi", tokenizer_name_or_path="/no/such"
    )
    with pytest.raises(ValueError, match="TEXT cannot load the tokenizer /no/such: ") as error:
        adapter.attach(tiny_model("llama"))
    assert "\n" not in str(error.value)


def test_a_model_whose_embedding_hf_peft_does_not_find_is_refused():
    model = AutoModelForCausalLM.from_config(tiny_config("moshi"))
    with pytest.raises(ValueError, match="MoshiForCausalLM could be read by no other program"):
        PromptTuning(2).attach(model)
