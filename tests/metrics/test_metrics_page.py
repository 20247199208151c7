"""What docs/metrics.md shows is so."""

import ast
import re
from pathlib import Path

import yaml

from peft_lightning import metrics
from peft_lightning.metrics import LIKELIHOOD, METRICS
from peft_lightning.training.answer_options import answer_options

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_values_behind_the_lines_of_the_program_are_theirs():
    (program,) = blocks("python")
    names = {}
    exec(program, names)
    shown = re.findall(r"^(\w+\(.*\))  # (.+)$", program, re.MULTILINE)
    assert len(shown) == 5
    for line, value in shown:
        assert eval(line, names) == ast.literal_eval(value)


def test_the_options_of_the_yaml_block_are_those_of_a_module():
    (text,) = blocks("yaml")
    model = yaml.safe_load(text)["model"]
    options = answer_options(
        model.pop("metrics"), model.pop("metric_rows"), model.pop("labels"), "sum"
    )
    assert options.labels == ("yes", "no")
    assert not model


def test_every_metric_has_a_row():
    rows = re.findall(r"^\| ((?:`\w+` ?)+)\|", PAGE, re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(rows)) == [*METRICS, LIKELIHOOD]
    assert set(metrics.__all__) >= {"corpus_score", "row_scores", "most_frequent_share"}
