"""The range test of the learning rate: its curve, what it suggests, and when it says no more."""

import json

import pytest

from cli_driver import drive
from peft_lightning.experiments.rate_test import RateTest, check_range
from peft_lightning.messages import UserError

LOSSES = [5.0] * 20 + [5.0 - 0.2 * i for i in range(20)] + [1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0]


def rate_test(losses, highest=1.0):
    found = RateTest(highest)
    for i, loss in enumerate(losses):
        if found.add(1e-6 * 1.2**i, loss):
            break
    return found


def test_the_suggestion_is_a_third_of_the_rate_at_the_lowest_smoothed_loss():
    test = rate_test(LOSSES)
    means = []
    for i in range(len(test.losses)):
        width = min(5, i, len(test.losses) - 1 - i)
        part = test.losses[i - width : i + width + 1]
        means.append(sum(part) / len(part))
    best = means.index(min(means))
    assert test.smoothed == means
    assert 36 <= best <= 41
    assert test.at_minimum == 1e-6 * 1.2**best
    assert test.suggestion == pytest.approx(test.at_minimum / 3, rel=0.05)
    assert test.warning is None


def test_a_test_ends_when_the_running_mean_is_half_above_its_minimum():
    test = rate_test(LOSSES)
    assert test.has_diverged
    assert len(test.losses) < len(LOSSES)
    running = []
    for i in range(len(test.losses)):  # the mean with weights .9 ** age
        mean = sum(0.9 ** (i - j) * x for j, x in enumerate(test.losses[: i + 1]))
        running.append(mean / sum(0.9**k for k in range(i + 1)))
    assert test.running == pytest.approx(running)
    assert running[-1] > 1.5 * min(running)
    assert all(x <= 1.5 * min(running[: i + 1]) for i, x in enumerate(running[:-1]))


def test_a_suggestion_at_an_edge_of_the_range_is_said():
    falling = rate_test([5.0 - 0.01 * i for i in range(60)], highest=1e-6 * 1.2**59)
    assert "still falls at the upper edge" in falling.warning
    rising = rate_test([1.0, 1.0, 1.2, 2.0, 4.0, 8.0, 16.0])
    assert "at the lower edge of the range: begin lower than --min_lr 1e-06" in rising.warning


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((0.0, 1.0, 100), "--min_lr must be above 0 and below --max_lr, got 0 and 1"),
        ((1.0, 0.1, 100), "got 1 and 0.1"),
        ((1e-6, 1.0, 9), "--steps must be at least 10"),
    ],
)
def test_a_range_that_is_none_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        check_range(*options)


def test_the_command_finds_a_rate_and_leaves_the_folder_of_the_run_alone(base, rows, tmp_path):
    fit = ["--model.base_model", str(base), "--data.train", str(rows), "--data.batch_size", "4"]
    fit += ["--trainer.accelerator", "cpu", "--trainer.default_root_dir", "run"]
    fit += ["--data.cache_dir", "cache", "--seed_everything", "0"]
    command = ["find-lr", *fit, "--steps", "40", "--min_lr", "1e-5"]
    told, again, wrong = drive(
        tmp_path, [command, [*command, "--json", "--out", "out"], [*command, "--max_lr", "1e-6"]]
    )
    assert told[0] == again[0] == 0, told[2] + again[2]
    found = json.loads(again[1])
    assert f"suggested: --model.learning_rate {found['suggestion']:g}; " in told[1]
    assert 1e-5 < found["suggestion"] < found["at_minimum"]
    steps = len(found["rates"])
    assert steps == len(found["losses"]) == len(found["smoothed"]) <= 40
    factor = (1 / 1e-5) ** (1 / 39)
    assert found["rates"] == pytest.approx([1e-5 * factor**i for i in range(steps)])
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["find_lr.html"]
    assert "<svg" in (tmp_path / "out/find_lr.html").read_text()
    assert (wrong[0], wrong[1]) == (2, "")
