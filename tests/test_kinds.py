"""Tests are marked by what they do, and rounding is within the bound that tests allow."""

import os
import subprocess

import pytest
import torch

import cli_driver
import exactness
import processes
import test_cli
import test_rms_norm
import tiny_run
from kinds import _of_processor, _reached
from rounding import assert_first_adam_step, assert_near, rounding_error


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
