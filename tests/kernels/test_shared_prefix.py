"""What all rows of a batch begin with is computed once, and nothing else changes."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from peft_lightning import CausalLMModule, LoRA, PromptTuning, loss
from peft_lightning.data.collate import flat_collate, padded_collate
from peft_lightning.kernels.shared_prefix import WORTH, share_prefix
from rounding import BACKWARD, assert_near
from tiny import ARCHITECTURES

PREFIX = list(range(10, 26))


def rows(*answers, prefix=PREFIX, labelled=0):
    """Return rows of a common prefix, two tokens of their own, and an answer of a length each.

    The last ``labelled`` tokens before the answer have labels as well.
    """
    generator = np.random.default_rng(0)
    found = []
    for length in answers:
        own = generator.integers(30, 200, 2 + length)
        ids = np.array([*prefix, *own])
        unlabelled = len(prefix) + 2 - labelled
        labels = np.concatenate([np.full(unlabelled, -100), ids[unlabelled:]])
        found.append({"input_ids": ids, "labels": labels})
    return found


BATCH = flat_collate(rows(3, 1, 8, 5))


def loaded(folder, adapter=None, dtype=None, **options):
    torch.manual_seed(0)
    adapter = adapter or LoRA(r=2, init_lora_weights=False)
    module = CausalLMModule(str(folder), adapter, **options)
    module.configure_model()
    if dtype is not None:
        module.model.to(dtype)
    return module


def loss_and_gradients(module, batch=BATCH):
    nll, tokens = module.nll(batch)
    return nll, tokens, torch.autograd.grad(nll, module.trainable_parameters()), module.correct


def widths_of(module):
    """Return a list to which each forward pass adds how many tokens it is given."""
    widths = []
    module.model.get_input_embeddings().register_forward_hook(
        lambda layer, given, out: widths.append(given[0].shape[1])
    )
    return widths


@pytest.fixture
def never(monkeypatch):
    """Compute whole rows from the call on."""
    return lambda: monkeypatch.setattr(loss, "share_prefix", lambda batch: batch)


def test_the_prefix_becomes_the_first_sequence():
    first, second = [*PREFIX, 1, 2, 3], [*PREFIX, 4, 5]
    batch = flat_collate(
        [
            {"input_ids": np.array(ids), "labels": np.array([-100] * (len(ids) - 1) + ids[-1:])}
            for ids in (first, second, first)
        ]
    )
    n = len(PREFIX)
    shared = share_prefix(batch)
    assert shared["prefix_len"] == n
    assert shared["seq_lens"] == [n, 3, 2, 3]
    assert shared["cu_seq_lens"].tolist() == [0, n, n + 3, n + 5, n + 8]
    assert shared["cu_seq_lens"].dtype == batch["cu_seq_lens"].dtype
    assert shared["input_ids"].tolist() == [[*PREFIX, 1, 2, 3, 4, 5, 1, 2, 3]]
    places = [*range(n), *range(n, n + 3), *range(n, n + 2), *range(n, n + 3)]
    assert shared["position_ids"].tolist() == [places]
    assert shared["labels"].tolist() == [[-100] * n + [-100, -100, 3, -100, 5, -100, -100, 3]]


@pytest.mark.parametrize(
    "batch",
    [
        flat_collate(rows(3)),
        flat_collate(rows(3, 4, prefix=PREFIX[: WORTH // 2 - 1])),
        flat_collate(rows(1, 1, labelled=2 + len(PREFIX))),
        flat_collate([*rows(3, 4), *rows(5, prefix=[9, *PREFIX])]),
        {**BATCH, "more": torch.zeros(1)},
        flat_collate([]),
    ],
    ids=["one row", "short", "with labels", "another beginning", "more than is known", "no row"],
)
def test_other_batches_stay_as_they_are(batch):
    assert share_prefix(batch) is batch


def test_a_token_with_a_label_and_the_last_of_a_row_are_no_part_of_a_prefix():
    assert share_prefix(flat_collate(rows(*[2] * 9, labelled=8)))["prefix_len"] == len(PREFIX) - 6
    same = {"input_ids": np.array([*PREFIX, 1]), "labels": np.array([-100] * len(PREFIX) + [1])}
    assert share_prefix(flat_collate([same] * 5))["prefix_len"] == len(PREFIX)


@pytest.mark.parametrize("labelled", [0, 2])  # 2: the first token after the prefix has a label
@pytest.mark.parametrize("architecture", ["gpt2", "opt"])  # float64 in every operation
def test_loss_and_gradients_are_those_of_whole_rows_in_float64(
    bases, architecture, labelled, never
):
    module = loaded(bases[architecture], dtype=torch.float64)
    batch = flat_collate(rows(3, 1, 8, 5, labelled=labelled))
    found = loss_and_gradients(module, batch)
    never()
    assert_close(found, loss_and_gradients(module, batch), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_computes_the_prefix_once_and_the_same(bases, architecture, never):
    module = loaded(bases[architecture])
    widths = widths_of(module)
    found = loss_and_gradients(module)
    tokens = BATCH["input_ids"].shape[1]
    assert widths[-1] == tokens - 3 * len(PREFIX)
    never()
    expected = loss_and_gradients(module)
    assert widths[-1] == tokens
    assert_near(found, expected, products=BACKWARD)


def test_logits_of_labelled_tokens_stay_in_their_order(bases, never):
    module = loaded(bases["gpt2"], dtype=torch.float64)
    batch = flat_collate(rows(3, 1, 8, 5, labelled=2))
    found = module.labelled_logits(batch)
    never()
    assert_close(found, module.labelled_logits(batch), rtol=1e-10, atol=1e-12)


def whole(module, batch=BATCH):
    """Return whether layers are given every token of ``batch``."""
    widths = widths_of(module)
    module.nll(batch)
    return widths[-1] >= batch["input_ids"].shape[1]


def test_dropout_draws_for_every_row(bases):
    module = loaded(bases["llama"], LoRA(r=2, lora_dropout=0.1))
    module.model.eval()
    assert not whole(module)
    for layer in module.model.modules():
        layer.training = isinstance(layer, torch.nn.Dropout)
    assert whole(module)


@pytest.mark.parametrize(
    ("adapter", "options"),
    [
        (LoRA(r=2), {"attn_implementation": "sdpa"}),
        (LoRA(r=2), {"compile": True}),
        (PromptTuning(3, "SAMPLE_VOCAB"), {}),
    ],
    ids=["transformers' attention", "compiled", "virtual tokens"],
)
def test_rows_are_whole_where_another_way_is_taken(bases, adapter, options):
    module = loaded(bases["llama"], adapter, **options)
    assert not module.outputs._may_share_prefix(BATCH)


def test_padded_rows_are_whole(bases):
    assert whole(loaded(bases["llama"]), padded_collate(rows(3, 1, 8, 5), 0))


def test_a_base_in_training_mode_computes_whole_rows(bases):
    module = loaded(bases["llama"])
    module.model.train()
    assert whole(module)


def test_a_model_for_which_it_is_not_exact_computes_whole_rows(bases, monkeypatch):
    module = loaded(bases["llama"])
    own = module.model.model.layers[1].forward

    def position_of_row(hidden_states, *args, **kwargs):  # counts what it is given
        count = torch.arange(hidden_states.shape[1], dtype=hidden_states.dtype)[None, :, None]
        restart = (kwargs["position_ids"] == kwargs["position_ids"].min())[..., None]
        first = torch.where(restart, count, 0).cummax(1).values
        return own(hidden_states + count - first, *args, **kwargs)

    module.model.model.layers[1].forward = position_of_row
    assert whole(module)
