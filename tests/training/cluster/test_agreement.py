"""Processes that would train on something else, or with something else, do not train at all."""

import copy
import shutil

import pytest
from safetensors.torch import load_file, save_file

from peft_lightning.training.cluster.agreement import difference_of
from processes import in_processes, outcome

FACTS = {
    "node": "n1",
    "base model": "a" * 64,
    "options": {"model.learning_rate": 0.1, "trainer.max_steps": 5},
    "code": {"mine.py": "b" * 64},
    "libraries": {"torch": "2.9.0", "numpy": "2.0.0"},
}


def test_equal_processes_have_no_difference():
    assert difference_of([FACTS, {**copy.deepcopy(FACTS), "node": "n2"}]) is None
    more = {**FACTS["code"], "plots.py": "e" * 64}  # that one of them has loaded
    assert difference_of([{**FACTS, "code": more}, FACTS]) is None
    assert difference_of([FACTS, {**FACTS, "code": more}]) is None


OTHER_RATE = {"options": {**FACTS["options"], "model.learning_rate": 0.2}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base model": "c" * 64}, f"base model: process 0 on n1 has {'a' * 12}, process 1 on n2 "),
        (OTHER_RATE, "has model.learning_rate 0.2"),
        ({"code": {"mine.py": "d" * 64}}, f"has mine.py {'d' * 12}; start all of them from the"),
        ({"libraries": {"torch": "2.9.0", "numpy": "1.9"}}, "has numpy 1.9; let all of them use"),
    ],
)
def test_a_difference_is_one_line_that_says_which_node_has_what(changes, message):
    said = str(difference_of([FACTS, {**copy.deepcopy(FACTS), "node": "n2", **changes}]))
    assert message in said
    assert "on n1" in said
    assert "on n2" in said
    assert "\n" not in said


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_processes_with_other_base_weights_under_the_same_name_are_refused_all_of_them(
    base, rows, tmp_path, strategy
):
    other = tmp_path / "other" / base.name
    shutil.copytree(base, other)
    weights = load_file(other / "model.safetensors")
    weights[next(iter(weights))] += 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    options = {"base": [str(base), str(other)], "rows": str(rows)}
    in_processes(2, tmp_path / "run", {"one": {**options, "trainer": {"strategy": strategy}}})
    for rank in range(2):
        said = outcome(tmp_path / "run", "one", rank)["error"]
        assert "the processes differ in their base model: process 0 on" in said
