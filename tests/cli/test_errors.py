"""What the command line makes of an error: one line and a status, or the traceback of a bug."""

import pytest

from peft_lightning.__main__ import failed
from peft_lightning.messages import RunError, UserError


class MisconfigurationException(Exception):  # noqa: N818 - Lightning's name
    pass


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("r must be\n  at least 1"), 2),
        (FileNotFoundError("r must be at least 1"), 2),
        (MisconfigurationException("r must be at least 1"), 2),
        (RunError("r must be at least 1"), 1),
        (MemoryError("r must be at least 1"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_expected_error_is_one_line_and_a_status(error, status, capsys):
    assert failed(error) == status
    assert capsys.readouterr().err == "error: r must be at least 1\n"


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("x"), RuntimeError("x"), NotImplementedError("x")]
)
def test_every_other_error_is_a_bug_and_has_its_traceback(error, capsys):
    assert failed(error) is None
    assert capsys.readouterr().err == ""


def test_the_types_are_those_that_a_program_expects():
    assert issubclass(UserError, ValueError)
    assert issubclass(RunError, RuntimeError)
