"""What a run says of itself: the base before it, forgetting, overfitting, gradients."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from transformers import AutoModelForCausalLM

from peft_lightning import LoRA, PromptTuning
from peft_lightning.adapters import disable_adapter
from peft_lightning.inference.generate import generate_texts
from peft_lightning.messages import UserError
from peft_lightning.training.general_text import general_text_loss, general_texts
from peft_lightning.training.overfitting import Climbs, rise_and_error
from recorded import assert_same, trained
from test_history import DATA, StopAt, lines_of, stopped
from tiny_run import byte_tokenizer, fit

PROMPT = PromptTuning(num_virtual_tokens=3, prompt_tuning_init="RANDOM")
TEXT = "Swifts sleep in the air.\n\nBread rises.\n\n" + "A long passage. " * 30


def samples(root):
    return [json.loads(line) for line in (root / "samples.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "general.txt"
    file.write_text(TEXT)
    return file


@pytest.fixture(scope="module")
def watched(base, rows, text, tmp_path_factory):
    """A run with all of these signals, and one with none of them."""
    folder = tmp_path_factory.mktemp("watched")
    module = {"forgetting": str(text), "sample_prompts": ["say 1"], "sample_max_new_tokens": 6}
    adapter = LoRA(r=2, lora_dropout=0.1, init_lora_weights=False)  # which is not the base
    options = {"adapter": adapter, "data": DATA, "log_every_n_steps": 5}
    first = fit(base, rows, folder / "with", module=module, **options)
    second = fit(base, rows, folder / "without", **options)
    return first, second, folder / "with"


def test_what_is_measured_beside_a_run_changes_no_bit_of_it(watched):
    first, second, _ = watched
    assert_same(trained(first), trained(second))


def test_the_samples_begin_with_the_answers_of_the_base_alone(watched, base):
    trainer, _, root = watched
    lines = samples(root)
    assert [line["step"] for line in lines] == [0, 5, 10]
    module = trainer.lightning_module
    with disable_adapter(module.model):
        tokenizer, form = byte_tokenizer(), trainer.datamodule.prompt_format
        model = AutoModelForCausalLM.from_pretrained(base)
        expected = generate_texts(model, None, tokenizer, ["say 1"], 6, prompt_format=form)
    assert lines[0]["prediction"] == expected[0]
    assert lines[0]["prediction"] != lines[2]["prediction"]


def test_a_resumed_run_has_each_sample_once(base, rows, tmp_path):
    root = tmp_path / "run"
    module = {"sample_prompts": ["say 1"], "sample_max_new_tokens": 2}
    options = {"data": DATA, "module": module}
    stopped(base, rows, root, callbacks=[StopAt(7)], **options)
    assert [line["step"] for line in samples(root)] == [0, 5]
    fit(base, rows, root, ckpt_path=str(root / "checkpoints/last.ckpt"), **options)
    assert [line["step"] for line in samples(root)] == [0, 5, 10]


# ---- forgetting ---------------------------------------------------------------------------------


def defined(model, text, most=256):
    """Return nats and tokens of a text after BOS, in parts of ``most`` tokens, in float64."""
    tokenizer = byte_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    nll, count = 0.0, 0
    for start in range(0, len(ids), most - 1):
        part = torch.tensor([[tokenizer.bos_token_id, *ids[start : start + most - 1]]])
        with torch.no_grad():
            logits = model.double()(input_ids=part).logits[0, :-1]
        nll += F.cross_entropy(logits, part[0, 1:], reduction="sum").item()
        count += part.shape[1] - 1
    return nll, count


def test_the_loss_on_general_text_is_that_of_all_its_tokens(base):
    passages = [text.strip() for text in TEXT.split("\n\n")]
    model = AutoModelForCausalLM.from_pretrained(base)
    found = general_text_loss(model, None, byte_tokenizer(), passages)
    parts = [defined(model, text) for text in passages]
    nll, tokens = (sum(column) for column in zip(*parts, strict=True))
    assert found.tokens == tokens
    assert found.per_token == pytest.approx(nll / tokens, rel=1e-5)
    size = len("".join(passages).encode())
    assert found.bits_per_byte == pytest.approx(nll / size / math.log(2), rel=1e-5)


def test_the_base_alone_is_had_while_an_adapter_is_attached(base):
    model = AutoModelForCausalLM.from_pretrained(base)
    alone = general_text_loss(model, None, byte_tokenizer(), ["abc def"])
    adapter = LoRA(r=2, init_lora_weights=False, lora_dropout=0.5)
    adapter.attach(model)
    model.train()
    assert general_text_loss(model, None, byte_tokenizer(), ["abc def"]) == alone
    adapted = general_text_loss(model, adapter, byte_tokenizer(), ["abc def"])
    assert adapted == general_text_loss(model, adapter, byte_tokenizer(), ["abc def"])
    assert adapted.nll != alone.nll


def test_a_run_logs_how_much_worse_it_is_on_general_text(watched, base, text):
    trainer, _, root = watched
    module = trainer.lightning_module
    passages = general_texts(text)
    before = general_text_loss(module.model, None, byte_tokenizer(), passages)
    after = general_text_loss(module.model, module.adapter, byte_tokenizer(), passages)
    last = [line for line in lines_of(root) if line["kind"] == "val"][-1]["metrics"]
    assert last["forgetting/loss"] == pytest.approx(after.per_token, rel=1e-6)
    assert last["forgetting/bits_per_byte"] == pytest.approx(after.bits_per_byte, rel=1e-6)
    increase = after.per_token - before.per_token
    assert last["forgetting/increase"] == pytest.approx(increase, abs=1e-5)
    summary = json.loads((root / "summary.json").read_text())
    assert summary["last"]["forgetting/increase"] == last["forgetting/increase"]


def test_the_package_has_general_text_of_many_kinds():
    texts = general_texts()
    assert len(set(texts)) == len(texts) >= 40
    assert 10_000 < sum(map(len, texts)) < 20_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            '{"text": "a"}\n{"texts": "b"}\n',
            "line 2 of .* is no JSON object with a text",
        ),
        ("a.txt", "\n\n \n", "there is no text in"),
        ("none.txt", None, "there is no file"),
    ],
)
def test_a_file_without_text_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        general_texts(tmp_path / name)


# ---- overfitting --------------------------------------------------------------------------------


def test_the_error_of_a_rise_is_that_of_paired_groups():
    torch.manual_seed(0)
    tokens = torch.tensor([4.0, 10.0, 6.0], dtype=torch.float64)
    before = torch.stack([tokens * torch.tensor([1.0, 2.0, 3.0]), tokens], 1)
    rises = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)  # nats per token of each group
    now = torch.stack([before[:, 0] + tokens * rises, tokens], 1)
    rise, error = rise_and_error(before, now)
    mean = float((tokens * rises).sum() / 20)
    left = [float(n * (r - mean)) for n, r in zip(tokens, rises, strict=True)]
    assert rise == pytest.approx(mean)
    assert error == pytest.approx((sum(x * x for x in left) * 3 / 2) ** 0.5 / 20)
    constant = torch.stack([before[:, 0] + 0.1 * tokens, tokens], 1)
    assert rise_and_error(before, constant)[1] == pytest.approx(0, abs=1e-12)
    assert rise_and_error(before[:1], now[:1])[1] == math.inf


def test_other_batches_are_compared_as_independent_ones():
    before = torch.tensor([[4.0, 4.0], [6.0, 4.0]], dtype=torch.float64)
    now = torch.tensor([[5.0, 3.0], [9.0, 5.0]], dtype=torch.float64)
    rise, error = rise_and_error(before, now)
    assert rise == pytest.approx(14 / 8 - 10 / 8)
    own = [2 / 8**2 * sum((n - m * t) ** 2 for n, t in g) for g, m in (
        ([(4, 4), (6, 4)], 10 / 8), ([(5, 3), (9, 5)], 14 / 8)
    )]  # fmt: skip
    assert error == pytest.approx(sum(own) ** 0.5)


def climbs(values):
    curve = Climbs()
    for value in values:
        curve.add(value)
    return curve


def test_a_curve_rises_where_it_does_so_three_times_in_a_row_and_farther_than_ever():
    rising = [2.0, 1.8, 1.9, 2.0, 2.1]
    assert climbs(rising).is_rising(0.3)
    assert not climbs(rising[:-1]).is_rising(0.2)
    assert not climbs([2.0, 1.7, 1.9, *rising[1:]]).is_rising(0.39)  # .2 has gone back
    assert climbs([2.0, 1.7, 1.9, *rising[1:]]).is_rising(0.41)
    assert not climbs([2.0, 1.8, 1.9, 2.0, 1.99, 2.1]).is_rising(0.3)


def test_an_end_above_the_minimum_is_said_once_with_what_to_do(base, rows, tmp_path, caplog):
    caplog.set_level("INFO")
    root = tmp_path / "run"

    class Worsens(Callback):
        """Makes the update larger from the third epoch on."""

        def on_validation_start(self, trainer, pl_module):
            if trainer.current_epoch >= 2:
                torch._foreach_mul_([p.data for p in pl_module.trainable_parameters()], 3.0)

    data = {"val_fraction": 0.5, "batch_size": 2}
    fit(base, rows, root, data=data, callbacks=[Worsens()], max_epochs=4)
    warnings = [line for line in lines_of(root) if line["kind"] == "warning"]
    assert len(warnings) == 1
    [line] = warnings
    val = {x["step"]: x["metrics"]["val/loss"] for x in lines_of(root) if x["kind"] == "val"}
    best = min((x for x in val if x < line["step"]), key=val.get)
    assert f"above its minimum of step {best} (" in line["text"]
    assert "best.ckpt is of the best validation" in line["text"]
    assert "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val/loss" in line["text"]
    assert line["metrics"]["rise"] == pytest.approx(val[line["step"]] - val[best], rel=1e-6)
    assert caplog.text.count("the run ends with val/loss") == 1


# ---- virtual tokens -----------------------------------------------------------------------------


def test_the_gradient_norm_of_each_virtual_token_is_logged(base, rows, tmp_path):
    class Grads(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            grad = pl_module.model.prompt_embeddings.grad
            norms.append(grad.double().square().sum(1).sqrt().tolist())

    norms = []
    options = {"log_every_n_steps": 2, "max_steps": 4, "accumulate_grad_batches": 2}
    fit(base, rows, tmp_path / "run", adapter=PROMPT, callbacks=[Grads()], **options)
    lines = [line for line in lines_of(tmp_path / "run") if line["kind"] == "train"]
    assert [line["step"] for line in lines] == [2, 4]
    for line, expected in zip(lines, (norms[1], norms[3]), strict=True):
        assert line["virtual_token_grad_norms"] == pytest.approx(expected, rel=1e-5)
        mean, most = (line["metrics"][f"grad_norm/virtual_tokens_{n}"] for n in ("mean", "max"))
        assert (mean, most) == pytest.approx((sum(expected) / 3, max(expected)), rel=1e-5)
