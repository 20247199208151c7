"""Weights in the loss: a weighted sum over tokens and the sum of the weights, however computed."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from peft_lightning import CausalLMModule, LoRA, PromptTuning, load_adapter, loss
from peft_lightning.data.collate import flat_collate, padded_collate
from peft_lightning.training.evaluation import Evaluation
from peft_lightning.training.gradients import StepSums
from test_shared_prompt import prefixed
from tiny_run import fit

pytestmark = pytest.mark.processor
PREFIX = list(range(10, 34))
WEIGHTS = np.array([0.25, 1.0, 3.0, 0.0, 0.7, 1e-3], dtype=np.float32)


def rows(*lengths, prefix=()):
    """Return rows of random tokens with weights, of which the first tokens have none."""
    generator = np.random.default_rng(1)
    found = []
    for length in lengths:
        ids = np.array([*prefix, *generator.integers(40, 200, length)])
        weights = WEIGHTS[generator.integers(0, len(WEIGHTS), len(ids))]
        weights[: max(1, len(prefix))] = 0
        labels = np.where(weights, ids, -100)
        found.append({"input_ids": ids, "labels": labels, "loss_weights": weights})
    return found


ROWS = rows(5, 13, 1, 20)
WITH_PREFIX = rows(5, 13, 2, 20, prefix=PREFIX)


def loaded(folder, adapter, **options):
    torch.manual_seed(0)
    module = CausalLMModule(str(folder), adapter, **options)
    module.configure_model()
    module.model.double()
    return module


def define(model, adapter, rows):
    """Return loss, count and hits by the definition, from transformers' forward of each row."""
    total = count = hits = torch.zeros((), dtype=torch.float64)
    for row in rows:
        ids = torch.from_numpy(row["input_ids"])
        inputs = adapter.prepare_inputs(model, {"input_ids": ids[None]})
        probabilities = model(**inputs).logits[0, -len(ids) : -1].softmax(-1)
        weights = torch.from_numpy(row["loss_weights"][1:]).double()
        total = total - weights @ probabilities[range(len(ids) - 1), ids[1:]].log()
        count = count + weights.sum()
        hits = hits + weights @ (probabilities.argmax(-1) == ids[1:]).double()
    return total, count, hits


def check(module, batch, expected, parameters):
    """Compare loss, count, hits and gradients with those of the definition."""
    found = (*module.nll(batch), module.correct)
    assert found[1].dtype == torch.float64
    assert_close(found, expected, rtol=1e-6, atol=0)  # the batch's weights are float32
    assert_close(found[0], expected[0], rtol=1e-10, atol=0)
    ours = torch.autograd.grad(found[0], module.trainable_parameters())
    theirs = torch.autograd.grad(expected[0], parameters)
    assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


LORA = LoRA(r=2, init_lora_weights=False)
WAYS = {  # adapter, rows, layout, further options
    "flat": (LORA, ROWS, "flat", {}),
    "padded": (LORA, ROWS, "padded", {}),
    "the model's own logits": (LORA, ROWS, "flat", {}),
    "the model's own logits, padded": (LORA, ROWS, "padded", {}),
    "a prefix that is computed once": (LORA, WITH_PREFIX, "flat", {}),
    "whole blocks": (LORA, ROWS, "flat", {}),
    "transformers' attention": (LORA, ROWS, "flat", {"attn_implementation": "sdpa"}),
    "a saved head": (LoRA(r=2, modules_to_save=["lm_head"]), ROWS, "flat", {}),
    "virtual tokens once": (PromptTuning(3), ROWS, "flat", {}),
    "virtual tokens in each": (PromptTuning(3), ROWS, "flat", {}),
    "virtual tokens, padded": (PromptTuning(3), ROWS, "padded", {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_loss_is_the_weighted_sum_over_tokens_however_it_is_computed(bases, way, monkeypatch):
    adapter, given, layout, options = WAYS[way]
    module = loaded(bases["gpt2"], adapter, **options)
    if way.startswith("the model's own"):
        module.outputs._plain_head = False
    if way == "whole blocks":
        monkeypatch.setattr(loss, "compiles_products", lambda embedding: True)
    if way == "virtual tokens in each":
        module.outputs._shares = False
    widths = []
    module.model.transformer.h[0].register_forward_hook(
        lambda layer, inputs, out: widths.append(inputs[0].shape[1])
    )
    batch = flat_collate(given) if layout == "flat" else padded_collate(given, 0)
    module.nll(batch)  # the checks of a first batch
    model = AutoModelForCausalLM.from_pretrained(bases["gpt2"])
    adapter.attach(model)
    adapter.load_state_dict(model, module.state_dict())
    model.double()
    parameters = [p for p in model.parameters() if p.requires_grad]
    check(module, batch, define(model, adapter, given), parameters)
    tokens = sum(len(row["input_ids"]) for row in given)
    width = {
        "a prefix that is computed once": tokens - 3 * len(PREFIX),
        "whole blocks": 64,
        "virtual tokens once": tokens + 3,
        "virtual tokens in each": tokens + 3 * len(given),
    }
    assert widths[-1] == width.get(way, widths[-1])


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_a_prefix_of_keys_and_values_leaves_the_weights_where_they_are(bases, layout, tmp_path):
    module = prefixed(bases["gpt2"], tmp_path / "prefix")
    module.model.double()
    model = AutoModelForCausalLM.from_pretrained(bases["gpt2"])
    load_adapter(model.eval(), tmp_path / "prefix", trainable=True)
    model.double()
    batch = flat_collate(ROWS) if layout == "flat" else padded_collate(ROWS, 0)
    expected = define(model, module.adapter, ROWS)
    check(module, batch, expected, [model.prompt_embeddings])


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_weights_of_0_and_1_are_not_in_a_batch_and_change_no_bit(bases, layout):
    whole = [{**row, "loss_weights": (row["labels"] != -100).astype(np.float32)} for row in ROWS]
    bare = [{k: v for k, v in row.items() if k != "loss_weights"} for row in ROWS]
    collate = flat_collate if layout == "flat" else lambda rows: padded_collate(rows, 0)
    batch = collate(whole)
    assert "loss_weights" not in batch
    ones = {**batch, "loss_weights": (batch["labels"] != -100).float()}
    module = loaded(bases["gpt2"], LORA)
    module.model.float()
    results = []
    for given in (collate(bare), batch, ones):
        nll, tokens = module.nll(given)
        gradients = torch.autograd.grad(nll, module.trainable_parameters())
        results.append((nll, tokens.double(), module.correct.double(), *gradients))
    for other in results[1:]:
        assert_close(other, results[0], rtol=0, atol=0)


def test_one_row_with_fractions_gives_the_others_their_labels_weights(bases):
    plain = {k: v for k, v in ROWS[1].items() if k != "loss_weights"}
    for batch in (flat_collate([ROWS[0], plain]), padded_collate([ROWS[0], plain], 0)):
        found = batch["loss_weights"][batch["labels"] != -100]
        of_first = ROWS[0]["loss_weights"]
        expected = [*of_first[of_first > 0], *[1.0] * int((ROWS[1]["labels"] != -100).sum())]
        assert_close(found, torch.tensor(expected, dtype=torch.float32), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("adapter", "given"), [(LORA, ROWS), (LORA, WITH_PREFIX), (PromptTuning(3), ROWS)]
)
def test_the_weights_of_labelled_logits_are_in_their_order(bases, adapter, given):
    module = loaded(bases["gpt2"], adapter)
    expected = np.concatenate([row["loss_weights"] for row in given])
    expected = torch.from_numpy(expected[expected > 0])
    for batch in (flat_collate(given), padded_collate(given, 0)):
        logits, targets = module.labelled_logits(batch)
        weights = module.labelled_weights(batch)
        assert_close(weights, expected, rtol=0, atol=0)
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        assert_close((weights * losses).sum(), module.nll(batch)[0], rtol=1e-10, atol=0)
        del batch["loss_weights"]
        assert_close(module.labelled_weights(batch), torch.ones(len(targets)))


def test_the_model_is_never_given_the_weights(bases):
    for adapter in (LORA, PromptTuning(3)):
        module, seen = loaded(bases["gpt2"], adapter), set()
        module.model.transformer.register_forward_pre_hook(
            lambda layer, args, kwargs, seen=seen: seen.update(kwargs), with_kwargs=True
        )
        for batch in (flat_collate(ROWS), padded_collate(ROWS, 0)):
            module.nll(batch)
            module.labelled_logits(batch)
        assert seen
        assert not seen & {"loss_weights", "labels"}


def test_a_sum_of_weights_of_0_is_no_loss_and_no_gradient(bases):
    module = loaded(bases["gpt2"], LORA)
    batch = flat_collate(ROWS)
    batch["loss_weights"].zero_()
    nll, tokens = module.nll(batch)
    assert (nll, tokens, module.correct) == (0, 0, 0)
    gradients = torch.autograd.grad(nll, module.trainable_parameters())
    assert not any(gradient.any() for gradient in gradients)


def test_sums_over_a_step_are_in_float64():
    sums, one = StepSums(), torch.ones((), requires_grad=True)
    # float32 has 24 bits
    for tokens in (torch.tensor(3), torch.tensor(2.0**-20), torch.tensor(2**24)):
        sums.take(sums.mean(one, tokens, {}), CausalLMModule)
    assert (float(sums.nll), float(sums.tokens)) == (3.0, 3 + 2.0**-20 + 2**24)


def test_an_evaluation_is_the_weighted_mean_of_its_batches():
    evaluation, logged = Evaluation(), {}
    batches = [(0.5, 0.125, 0.0625), (30.0, 12, 7), (0.0, 0, 0), (4.0, 1.5, 0.5)]
    for nll, tokens, correct in batches:
        kind = torch.float64 if isinstance(tokens, float) else torch.int64
        batch = {"loss_weights": None} if isinstance(tokens, float) else {}
        count, hits = torch.tensor(tokens, dtype=kind), torch.tensor(correct, dtype=kind)
        evaluation.update(torch.tensor(nll), count, hits, batch)

    class Module:
        @staticmethod
        def log(name, value, **options):
            logged[name] = value.item()

    evaluation.log(Module, "val")
    assert logged["val/loss"] == pytest.approx(34.5 / 13.625, rel=1e-12)
    assert logged["val/token_accuracy"] == pytest.approx(7.5625 / 13.625, rel=1e-12)
    for count in (2**24, 1, 1):  # float32 cannot add 1 to 2^24
        evaluation.update(torch.tensor(float(count)), torch.tensor(count), torch.tensor(1), {})
    evaluation.log(Module, "val")
    assert logged["val/token_accuracy"] == 3 / (2**24 + 2)


class Counts(CausalLMModule):
    """A loss that knows nothing of weights."""

    def nll(self, batch):
        logits, targets = self.labelled_logits(batch)
        loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        return loss, torch.tensor(len(targets))


@pytest.mark.parametrize("stage", ["training", "validation"])
def test_a_loss_that_leaves_out_the_weights_is_an_error(base, rows, tmp_path, stage):
    class Own(Counts):
        def nll(self, batch):
            of_stage = self.training == (stage == "training")
            return (Counts if of_stage else CausalLMModule).nll(self, batch)

    def run(name, data):
        options = {"data": data, "max_steps": 2, "enable_checkpointing": False}
        fit(base, rows, tmp_path / name, module_class=Own, val_check_interval=1, **options)

    run("plain", {})
    with pytest.raises(ValueError, match=r"rows have weights .* by labelled_weights\(batch\), and"):
        run("weighted", {"format": "weighted_rows.row", "val_fraction": 0.5})
