"""Tests are marked by what they do, and rounding is within the bound that tests allow."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

import cli_driver
import exactness
import long_files
import processes
import test_cli
import test_rms_norm
import tiny_run
from kinds import _of_processor, _reached
from rounding import assert_first_adam_step, assert_near, rounding_error

ROOT = Path(__file__).parents[1]


def starts_by_a_method():
    class Within:
        def go(self):
            return cli_driver.drive

    return Within


def forks():
    return os.fork()


def imports_within():
    from processes import in_processes

    return in_processes


def counts_processors():
    return os.cpu_count()


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda: subprocess.run, {"process"}),
        (starts_by_a_method, {"process"}),
        (forks, {"process"}),
        (imports_within, {"process"}),
        (cli_driver.drive, {"process"}),
        (processes.run, {"training"}),
        (exactness.train, {"training"}),
        (tiny_run.write_base, set()),
        (counts_processors, set()),
    ],
)
def test_kinds_are_found_through_all_that_is_called(function, found):
    assert _reached(function) == found


def test_a_file_depends_on_the_processor_if_it_uses_code_that_does():
    assert _of_processor(test_rms_norm)
    assert not _of_processor(test_cli)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("terms", [48, 4096])
def test_sums_in_another_order_are_within_the_bound_and_not_far_within(dtype, terms):
    torch.manual_seed(0)
    values = torch.randn(terms, 1000).to(dtype)
    one, other = values[0], values[-1]
    for row in values[1:]:
        one = one + row
    for row in values.flip(0)[1:]:
        other = other + row
    assert_near(one, other, terms=terms, products=1)
    wrong = one + 10 * rounding_error(dtype, terms, 1) * one.abs().max()
    with pytest.raises(AssertionError):
        assert_near(wrong, other, terms=terms, products=1)


def test_a_step_of_adamw_may_differ_where_the_gradient_is_rounding_alone():
    start, gradient = torch.ones(3), torch.tensor([1.0, -1.0, 1e-9])
    moved = start - 0.1 * torch.tensor([1.0, -1.0, 1.0])
    other = start - 0.1 * torch.tensor([1.0, -1.0, -1.0])
    assert_first_adam_step(moved, other, gradient, rate=0.1)
    with pytest.raises(AssertionError):
        assert_first_adam_step(moved, other, torch.ones(3), rate=0.1)


def test_long_files_start_first_in_their_order_and_are_there():
    long = long_files.LONG_FILES
    given = ["tests/test_a.py::x", *(f"{file}::x" for file in reversed(long)), "tests/test_a.py::y"]
    ordered = sorted(given, key=long_files.start_order)
    assert ordered == [*(f"{file}::x" for file in long), "tests/test_a.py::x", "tests/test_a.py::y"]
    assert [file for file in long if not (ROOT / file).is_file()] == []


def test_a_file_of_many_seconds_that_is_not_among_the_long_ones_is_named():
    listed = long_files.LONG_FILES[0]
    half = long_files.LONG / 2
    tests = [("tests/test_a.py::x", half + 1), (f"{listed}::x", 100), ("tests/test_b.py::x", half)]
    assert long_files.missing([*tests, ("tests/test_a.py::y", half)]) == {
        "tests/test_a.py": 2 * half + 1
    }
