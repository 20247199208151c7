"""``--fit_memory``: the cheapest changes come first, and the cheapest set that fits is named."""

from dataclasses import replace

import numpy as np
import pytest

from peft_lightning.data.batching import BatchPlan, WeightedSource
from peft_lightning.experiments.plan.advice import Change, Variant, advise, parse_bytes
from peft_lightning.experiments.plan.changes import (
    _shorter_rows,
    _smaller_batches,
    _tokens,
    peak_of,
)
from peft_lightning.experiments.plan.measured import Measured
from peft_lightning.experiments.plan.model_shape import ModelShape, StepOptions, memory_of
from peft_lightning.experiments.plan.rates import capacity_note, rate_warning
from peft_lightning.experiments.plan.text import advice_json, advice_text
from peft_lightning.messages import UserError

HALF = Change("batch", ("--data.batch_size", "4"), "halves")
QUARTER = Change("batch", ("--data.batch_size", "2"), "quarters")
AGAIN = Change("checkpointing", ("--model.activation_checkpointing", "true"), "recomputes")
SHORT = Change("length", ("--data.max_length", "9"), "cuts 3 of 8 rows", loss=1.1)
NEEDS = {HALF: (0.8, 1.05), QUARTER: (0.7, 1.2), AGAIN: (0.6, 1.4), SHORT: (0.5, 0.6)}


def predict(changes):
    """Return 1,000 bytes and 100 s, times the factors of each change."""
    peak, seconds = 1000.0, 100.0
    for change in changes:
        peak, seconds = peak * NEEDS[change][0], seconds * NEEDS[change][1]
    return Variant(changes, peak, seconds)


def test_a_run_that_fits_needs_no_change():
    advice = advise(1000, list(NEEDS), predict)
    assert advice.best.changes == ()
    assert advice_text(replace(advice, limit=2**30)) == "it fits 1 GiB as it is"


@pytest.mark.parametrize(
    ("limit", "best"),
    [
        (999, (HALF,)),  # 105 s
        (700, (QUARTER,)),  # 120 s
        (650, (SHORT,)),  # 60 s, and 1.1 of it for the rows: 126 s
        (450, (HALF, SHORT)),  # 63 s x 2.1
        (300, (AGAIN, SHORT)),  # 84 s x 2.1
        (240, (HALF, AGAIN, SHORT)),
        (210, (QUARTER, AGAIN, SHORT)),
        (200, None),
    ],
)
def test_the_cheapest_set_that_fits_is_found(limit, best):
    advice = advise(limit, list(NEEDS), predict)
    assert (advice.best and advice.best.changes) == best
    assert advice.smallest.changes == (QUARTER, AGAIN, SHORT)


def test_each_change_stands_alone_the_cheapest_first_and_says_what_to_paste():
    advice = advise(650, list(NEEDS), predict)
    assert [v.changes[0] for v in advice.single] == [QUARTER, SHORT, AGAIN]  # 120, 126, 140 s
    text = advice_text(advice).splitlines()
    assert "does not fit" in text[1]
    assert text[1].endswith("--data.batch_size 2  (quarters)")
    assert text[-1] == "  --data.max_length 9"
    plain = advice_json(advice)
    assert plain["best"]["options"] == ["--data.max_length", "9"]
    assert [v["fits"] for v in plain["single"]] == [False, True, True]


def test_where_nothing_fits_the_least_that_can_be_reached_is_said():
    text = advice_text(advise(100, list(NEEDS), predict))
    assert "nothing fits" in text
    assert "the least that can be reached is predicted as" in text
    assert "--data.batch_size 2 --model.activation_checkpointing true --data.max_length 9" in text


def test_a_set_is_measured_and_the_next_one_taken_if_it_does_not_fit():
    checked = []

    def check(variant):  # each needs a third more than predicted
        checked.append(variant.changes)
        return replace(variant, peak_bytes=variant.peak_bytes * 4 / 3, is_measured=True)

    advice = advise(690, list(NEEDS), predict, check)
    assert checked == [(SHORT,)]
    assert (advice.best.changes, advice.best.is_measured) == ((SHORT,), True)
    checked.clear()
    advice = advise(600, list(NEEDS), predict, check)
    # 667 bytes by the first; of those that are predicted below 446 the cheapest
    assert checked == [(SHORT,), (HALF, SHORT)]
    assert advice.best.changes == (HALF, SHORT)
    advice = advise(220, list(NEEDS), predict, check)
    assert advice.best is None
    assert advice.smallest.peak_bytes == pytest.approx(210 * 4 / 3)


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 8 * 2**30), ("8 gb", 8 * 2**30), ("900MiB", 900 * 2**20), ("1.5G", 1.5 * 2**30)],
)
def test_a_size_is_read_as_it_is_written(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["8", "many", "-3GiB", "1.2.3G", ""])
def test_what_is_no_size_is_an_error(text):
    with pytest.raises(UserError, match=r"write a size such as 8GiB"):
        parse_bytes(text)


def plan_of(lengths, **options):
    lengths = np.array(lengths)
    return BatchPlan(lengths, [WeightedSource(np.arange(len(lengths)))], shuffle=False, **options)


def test_smaller_batches_keep_the_rows_of_a_step():
    found = _smaller_batches(plan_of([3] * 12, batch_size=6), accumulate=2)
    assert [c.options for c in found] == [
        ("--data.batch_size", str(size), "--trainer.accumulate_grad_batches", str(factor))
        for size, factor in ((3, 4), (2, 6), (1, 12))
    ]
    found = _smaller_batches(plan_of([30, 20, 10] * 4, tokens_per_batch=128), accumulate=1)
    assert [c.options[1] for c in found] == ["64", "32"]  # not below the longest row
    assert [c.options[3] for c in found] == ["2", "4"]


def test_the_largest_batch_of_a_variant_is_that_of_its_own_batches():
    plan = plan_of([10, 20, 30, 40, 5, 5, 5, 5], batch_size=4)
    tokens = 100
    assert _tokens(plan, tokens, 1, None) == (100, 1.0)
    assert _tokens(plan, tokens, 2, None) == (70, 1.0)
    assert _tokens(plan, tokens, 4, 20) == (20, 90 / 120)
    assert _tokens(plan, tokens, 1, 20) == (70, 90 / 120)


def test_shorter_rows_are_counted():
    lengths = [10] * 60 + [20] * 20 + [30] * 15 + [40] * 5
    found = _shorter_rows(plan_of(lengths), "truncate")
    assert [(c.max_tokens, c.effect) for c in found] == [
        (30, "cuts 5 of 100 rows"),  # 95 % are at most that long
        (20, "cuts 20 of 100 rows"),
        (10, "cuts 40 of 100 rows"),
    ]
    assert found[0].options == ("--data.max_length", "30", "--data.truncation", "truncate")
    assert _shorter_rows(plan_of(lengths), "drop")[0].effect == "leaves out 5 of 100 rows"
    assert _shorter_rows(plan_of([7] * 9), "drop") == []


def test_a_variants_memory_is_scaled_to_what_was_measured():
    shape = ModelShape(2, 8, 20, 4, 100, linear=5000, other=1000, trainable=300)
    before = StepOptions(10, "float32", 4)
    measured = Measured(loaded=1_000_000, load_peak=1_100_000, peak=1_500_000)
    assert peak_of(measured, shape, before, before) == 1_500_000
    half = StepOptions(10, "bfloat16", 4)  # 6,000 weights of 2 bytes less
    assert peak_of(measured, shape, before, half) == pytest.approx(1_500_000 - 12_000)
    few = StepOptions(5, "float32", 4)
    old, new = memory_of(shape, before), memory_of(shape, few)
    ratio = (new.total - new.weights) / (old.total - old.weights)
    assert peak_of(measured, shape, before, few) == pytest.approx(1_000_000 + 500_000 * ratio)
    assert peak_of(replace(measured, peak=1_050_000), shape, before, few) == 1_100_000


@pytest.mark.parametrize(
    ("method", "parameters", "rate", "said"),
    [
        ("LORA", 7e9, 2e-4, None),
        ("LORA", 7e9, 3e-3, "0.003 is above what is published for LORA on a base of this size"),
        ("LORA", 135e6, 3e-3, None),
        ("FULL", 7e9, 1e-3, "above .* 1e-05 to 0.0003 .*--model.learning_rate 2e-05"),
        ("PROMPT_TUNING", 7e9, 1e-4, "below"),
        ("OWN", 7e9, 1.0, None),
        ("LORA", 7e9, None, None),
    ],
)
def test_a_rate_outside_what_is_published_is_one_line(method, parameters, rate, said):
    found = rate_warning(method, int(parameters), rate, 2e-5 if method == "FULL" else 2e-4)
    if said is None:
        assert found is None
    else:
        assert "\n" not in found
        import re

        assert re.search(said, found)


def test_a_lora_with_fewer_parameters_than_tokens_is_noted():
    assert "1,000 parameters for 2,000 tokens" in capacity_note("LORA", 1000, 2000)
    assert capacity_note("LORA", 2000, 2000) is None
    assert capacity_note("PROMPT_TUNING", 10, 2000) is None
