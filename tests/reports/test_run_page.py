"""The page of a run from the files of its folder: curves, samples, options, links."""

import json
import math
import re
from datetime import datetime

import pytest

from peft_lightning.data.tokens.marked_tokens import MarkedRow, MarkedToken
from peft_lightning.reports.differences import marked_differences
from peft_lightning.reports.run_curves import smoothed
from peft_lightning.reports.run_facts import RunFacts, read_facts
from peft_lightning.reports.run_page import Moment, run_page, size_text
from peft_lightning.reports.run_record import read_run
from peft_lightning.reports.token_text import rows_block

TIME = datetime(2026, 1, 2, 3, 4, 5)
SECRET = "hf_" + "a" * 30


def line(kind, step, **metrics):
    position = {"step": step, "epoch": step / 10, "tokens": 100 * step, "seconds": 2.0 * step}
    return {"kind": kind, **position, "metrics": metrics}


@pytest.fixture
def folder(tmp_path):
    """The folder of a run of ten steps with a validation at every second."""
    (tmp_path / "run.json").write_text("{}")
    lines = [line("train", i, **{"train/loss": 3 - i / 10, "lr": 1e-4}) for i in range(1, 11)]
    for one in lines:
        one["virtual_token_grad_norms"] = [1.0, 2.0, 3.0]
    for step in (2, 4, 6, 8, 10):
        found = {"val/loss": 3.0, "val/exact_match": 0.1, "val/exact_match/a": 0.2}
        lines.append(line("val", step, **found))
    lines.append({**line("warning", 10), "text": "val/loss <b>rises</b>"})
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return tmp_path


def page(folder, status="finished", known=None, left=None):
    return run_page(read_run(folder), known or RunFacts(), Moment(TIME, status, 10, left))


def labels(text):
    return re.findall(r'aria-label="([^"]* by [^"]*)"', text)


def test_each_curve_has_its_plot_and_the_sources_of_a_metric_share_one(folder):
    text = page(folder)
    assert labels(text) == [
        "loss (nats per token) by tokens",
        "loss (nats per token) by training time (s)",
        "learning rate by step",
        "gradient norm by step and virtual token",
        "val/exact_match by step",
    ]
    assert "<title>val/exact_match/a</title>" in text
    assert "val/loss &lt;b&gt;rises&lt;/b&gt;" in text


def test_few_values_are_a_table(folder):
    lines = (folder / "history.jsonl").read_text().splitlines()[:2]
    (folder / "history.jsonl").write_text("\n".join(lines) + "\n")
    text = page(folder)
    assert "<svg" not in text
    assert "loss (nats per token)" in text
    assert '<td class="n" data-value="2.9">2.9</td>' in text


def test_the_status_is_said_and_a_running_page_alone_reloads_itself(folder):
    known = RunFacts(total_steps=40)
    text = page(folder, "running", known, left=75.0)
    assert "<meta http-equiv=refresh" in text
    assert "2026-01-02 03:04:05" in text
    assert "about 1:15" in text
    assert "<progress max=40 value=10" in text
    for status, said in (
        ("finished", "Finished; written at"),
        ("killed", "The run ended without a word."),
        ("stopped: ValueError: <b>", "Stopped: ValueError: &lt;b&gt;"),
    ):
        text = page(folder, status)
        assert said in text
        assert "<meta http-equiv=refresh" not in text


def test_no_secret_of_the_options_is_on_the_page(folder):
    options = {"model": {"hub_token": SECRET, "name": f"x {SECRET}", "r": 16}}
    text = page(folder, known=RunFacts(options=options))
    assert SECRET not in text
    assert "model.r" in text
    assert "hub_token" not in text


def test_answers_are_compared_with_those_before_training(folder):
    rows = [
        {"step": step, "prompt": "<p>", "prediction": text}
        for step, text in (
            (0, "a red house"),
            (5, "no"),
            (5, "a green home"),
            (10, "a green house"),
        )
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    text = page(folder)
    assert "Before training" in text
    assert "<pre>a <del>red</del> house</pre>" in text
    assert "<pre>a <ins>green</ins> house</pre>" in text
    assert "All 3 steps" in text  # step 5 was made again
    assert ">no<" not in text


def test_the_facts_are_read_as_they_were_written_and_damaged_ones_are_none(tmp_path):
    rows = [MarkedRow("a.jsonl", [MarkedToken("x", 3, 1.0), MarkedToken("<s>", 1, 0.0, True)])]
    known = RunFacts("LORA", "base", 7, 100, [("q", 1, 2, 8)], {"r": {"a": [1]}}, rows)
    known.write(tmp_path)
    assert read_facts(tmp_path) == known
    (tmp_path / "report.json").write_text('{"rows": [')
    assert read_facts(tmp_path) == RunFacts()
    assert read_facts(tmp_path / "none") == RunFacts()


def test_of_a_long_row_both_ends_are_shown():
    tokens = [MarkedToken(f"{i} ", i, float(i > 95)) for i in range(100)]
    text = rows_block([MarkedRow("a", tokens)], most_tokens=10)
    shown = re.findall(r">(\d+) </span>", text)
    assert shown == [*map(str, range(5)), *map(str, range(95, 100))]
    assert "90 tokens" in text
    assert text.count('class="loss"') == 4


def test_the_smoothed_curve_is_the_mean_of_a_25th_around_each_value():
    values = [math.sin(i) + i / 30 for i in range(100)]
    values[40] = math.nan
    found = smoothed(values)
    for i, value in enumerate(found):  # two on each side
        window = [v for v in values[max(0, i - 2) : i + 3] if not math.isnan(v)]
        assert value == pytest.approx(sum(window) / len(window), rel=1e-12)


@pytest.mark.parametrize(
    ("before", "after", "marked"),
    [
        ("same", "same", ("same", "same")),
        ("a b c", "a c", ("a <del>b </del>c", "a c")),
        ("a", "a <b>", ("a", "a<ins> &lt;b&gt;</ins>")),
        ("one", "two", ("one", "two")),  # nothing in common: nothing is marked
        ("", "x", ("", "x")),
    ],
)
def test_words_that_the_other_text_has_not_are_marked(before, after, marked):
    assert marked_differences(before, after) == marked


@pytest.mark.parametrize(
    ("size", "text"), [(0, ""), (512, "512 bytes"), (2048, "2.0 KiB"), (3 * 2**29, "1.5 GiB")]
)
def test_sizes_are_read_as_a_reader_says_them(size, text):
    assert size_text(size) == text
