"""However a step's rows are cut up, its update is that of the mean over all its tokens."""

import json

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from safetensors.torch import load_file

from exactness import defined, train
from processes import in_processes, outcome
from tiny_run import byte_tokenizer, fit, write_base, write_rows
from weighted_rows import weight_of

FORMATS = {"rows": "auto", "rows with weights": "weighted_rows.row"}
ROWS = 10
CUTS = {
    "a batch of 8": {"data": {"batch_size": 8}},
    "8 batches of 1": {"data": {"batch_size": 1}, "accumulate_grad_batches": 8},
    "4 batches of 2, padded": {
        "data": {"batch_size": 2, "layout": "padded"},
        "accumulate_grad_batches": 4,
    },
    "a padded batch of 8": {"data": {"batch_size": 8, "layout": "padded"}},
    "recomputed activations": {
        "data": {"batch_size": 4},
        "accumulate_grad_batches": 2,
        "module": {"activation_checkpointing": True},
    },
    "transformers' own packed mask": {
        "data": {"batch_size": 8},
        "module": {"attn_implementation": "sdpa"},
    },
    "eager attention, padded": {
        "data": {"batch_size": 8, "layout": "padded"},
        "module": {"attn_implementation": "eager"},
    },
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """GPT-2: unlike Llama's norm and positions, all of it computes in float64."""
    return write_base(tmp_path_factory.mktemp("gpt2"), "gpt2")


@pytest.fixture(scope="module")
def ten_rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("ten") / "rows.jsonl", ROWS)


@pytest.fixture(scope="module", params=FORMATS)
def format(request):
    return FORMATS[request.param]


@pytest.fixture(scope="module")
def expected(base, ten_rows, format):
    """The last, short window is included; the weights of its tokens add up to less than 1."""
    weights = {} if format == "auto" else {"weight_of": weight_of}
    return defined(base, ten_rows, [8, 2], **weights)


def assert_same(ours, expected):
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("cut", CUTS)
def test_the_update_is_that_of_the_mean_over_tokens(
    cut, base, ten_rows, format, expected, tmp_path
):
    options = {**CUTS[cut], "data": {**CUTS[cut]["data"], "format": format}}
    _, ours = train(base, ten_rows, tmp_path / "run", **options)
    assert_same(ours, expected)


def test_a_token_budget_gives_the_same_update(base, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", 6)
    data = {"batch_size": 1, "tokens_per_batch": 100_000}
    _, ours = train(base, rows, tmp_path / "run", data=data)
    assert_same(ours, defined(base, rows, [6]))


@pytest.fixture(scope="module")
def of_two_processes(base, ten_rows, tmp_path_factory):
    """A folder of runs of two processes, by format and the batch size of each."""
    runs = {
        f"{format} {size}": {
            "base": str(base),
            "rows": str(ten_rows),
            "data": {"batch_size": size, "format": format, "shuffle": False},
            "trainer": {"accumulate_grad_batches": 4 // size},
        }
        for format in FORMATS.values()
        for size in (4, 1)
    }
    folder = tmp_path_factory.mktemp("two")
    in_processes(2, folder, runs)
    return folder


@pytest.mark.parametrize("batch_size", [4, 1])
def test_two_processes_give_the_same_update(batch_size, format, expected, of_two_processes):
    name = f"{format} {batch_size}"
    assert outcome(of_two_processes, name)["error"] is None
    assert_same(load_file(of_two_processes / name / "weights.safetensors"), expected)


@pytest.mark.slow
def test_validation_is_the_weighted_mean_over_its_rows(base, ten_rows, tmp_path):
    data = {"val": str(ten_rows), "format": "weighted_rows.row", "val_batch_size": 3}
    options = {"max_epochs": 15, "module": {"optimizer": lambda p: torch.optim.Adam(p, lr=0.03)}}
    trainer, _ = train(base, ten_rows, tmp_path / "run", data=data, **options)
    tokenizer, sums = byte_tokenizer(), torch.zeros(3, dtype=torch.float64)
    for record in map(json.loads, ten_rows.read_text().splitlines()):
        prompt = f"<|im_start|>user\n{record['prompt']}<|im_end|>\n<|im_start|>assistant\n"
        start = len(tokenizer(prompt)["input_ids"])
        ids = torch.tensor(tokenizer(f"{prompt}{record['completion']}<|im_end|>")["input_ids"])
        probabilities = trainer.lightning_module.model(ids[None]).logits[0].softmax(-1)
        for i in range(start, len(ids)):
            hit = probabilities[i - 1].argmax() == ids[i]
            nll = -probabilities[i - 1, ids[i]].log()
            sums += weight_of(record) * torch.tensor([nll, hit, 1.0], dtype=torch.float64)
    logged = trainer.callback_metrics
    assert logged["val/loss"].item() == pytest.approx((sums[0] / sums[2]).item(), rel=1e-9)
    assert logged["val/token_accuracy"].item() == pytest.approx(
        (sums[1] / sums[2]).item(), rel=1e-9
    )
    assert sums[1] > 0.1 * sums[2]


def test_the_norm_of_a_gradient_is_logged_without_the_scale_of_16_mixed(base, rows, tmp_path):
    def norm(name, *plugins):
        options = {"logger": CSVLogger(tmp_path / name), "log_every_n_steps": 1, "max_steps": 1}
        trainer = fit(base, rows, tmp_path / name, plugins=list(plugins), **options)
        return trainer.logged_metrics["grad_norm"].item()

    assert norm("scaled", MixedPrecision("16-mixed", "cpu")) == pytest.approx(norm("not"), rel=0.05)
