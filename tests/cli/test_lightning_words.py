"""What Lightning refuses is said in our words: the option, and what would be right."""

import shutil

import pytest

from cli_driver import drive
from peft_lightning.cli.lightning_words import in_our_words


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--trainer.val_check_interval", "5000"], "trainer.val_check_interval 5000 is more than"),
        (
            ["--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.monitor", "val_loss"],
            "EarlyStopping watches val_loss, which is not logged; there are ",
        ),
    ],
)
def test_an_option_that_lightning_refuses_is_named(options, said, tmp_path, base, rows):
    shutil.copy(rows, tmp_path / "rows.jsonl")
    fit = ["fit", "--model.base_model", str(base), "--data.train", "rows.jsonl"]
    fit += ["--trainer.accelerator", "cpu", "--data.val_fraction", "0.2", "--data.cache_dir", "c"]
    [(status, _, errors)] = drive(tmp_path, [[*fit, *options]])
    assert status == 2, errors
    assert said in errors.splitlines()[-1]
    assert "`" not in errors.splitlines()[-1]
    assert not said.startswith("Early") or errors.strip().endswith("did you mean val/loss?")


def test_a_device_that_is_not_here_is_named_and_other_texts_stay():
    assert in_our_words("No supported gpu backend found!").startswith("trainer.accelerator gpu:")
    assert in_our_words("something else") == "something else"
