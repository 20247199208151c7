"""Comparisons: groups, conclusions, what cannot be compared, the files, and the command."""

import csv
import json
import re
import shutil
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from browser import open_browser
from invented_runs import invented_comparison, invented_run, lora
from peft_lightning.experiments.compare.compare import compare_runs
from peft_lightning.experiments.compare.evaluated_model import EvaluationOptions
from peft_lightning.experiments.compare.groups import (
    differences,
    groups_of,
    options_of,
    short_names,
)
from peft_lightning.messages import UserError
from peft_lightning.reports.comparison_answers import answers_to, disagreements
from peft_lightning.reports.comparison_files import write_comparison
from peft_lightning.reports.comparison_page import comparison_page
from peft_lightning.reports.comparison_text import as_csv, as_json, as_markdown
from runs_to_compare import trained_runs
from tiny_run import write_rows

OPTIONS = EvaluationOptions(max_new_tokens=6, device="cpu")
RANKS = {2: 1.35, 4: 1.28, 8: 1.245, 16: 1.24}


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    """A base, two ranks with two seeds each."""
    return trained_runs(base, tmp_path_factory.mktemp("compared"))


@pytest.fixture(scope="module")
def compared(folder):
    options = replace(OPTIONS, forgetting=True)
    return compare_runs([folder], answers=4, metrics=["exact_match"], options=options)


@pytest.fixture(scope="module")
def invented():
    left = invented_run("r=64/seed=0", lora(64), status="stopped: OutOfMemoryError")
    left = replace(left, checkpoint=None, problem="it has no checkpoint")
    return invented_comparison(RANKS, left=[left], notes=["A note <of> some kind."])


# ---- groups --------------------------------------------------------------------------------------


def test_runs_that_differ_only_in_seed_and_folder_are_one_group():
    runs = [invented_run(f"r{r}s{s}", lora(r), s) for r in (2, 4) for s in (0, 1)]
    groups = groups_of(runs)
    assert [group.name for group in groups] == ["r=2", "r=4"]
    assert [[run.seed for run in group.runs] for group in groups] == [[0, 1], [0, 1]]
    assert [group.options for group in groups] == [{"r": 2}, {"r": 4}]


def test_a_callback_that_writes_into_the_runs_folder_makes_no_group():
    runs = [invented_run(f"a{s}", lora(2), s) for s in (0, 1)]
    for run in runs:
        run.options["trainer"]["callbacks"] = f"{run.record.folder}/logs"
    assert len(groups_of(runs)) == 1
    assert options_of(runs[0])["trainer.callbacks"] == "<run>/logs"


def test_methods_are_told_apart_by_their_name_and_not_by_options_that_others_lack():
    prompt = {"adapter": {"class_path": "PromptTuning", "init_args": {"num_virtual_tokens": 8}}}
    runs = [invented_run("a", lora(4)), invented_run("b", prompt), invented_run("c", lora(8))]
    assert [group.name for group in groups_of(runs)] == ["LoRA, r=4", "PromptTuning", "LoRA, r=8"]
    assert set(differences(runs)) == {"model.adapter", "model.adapter.r"}


def test_an_object_in_place_of_nothing_is_a_difference():
    adam = {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1}}}
    runs = [invented_run("a", {"optimizer": None}), invented_run("b", adam)]
    assert differences(runs) == {"model.optimizer": {"a": None, "b": "AdamW"}}
    runs = [invented_run("a", {"x": {}}), invented_run("b", {"x": {"q": 1}})]
    assert len(groups_of(runs)) == 2


def test_names_of_options_are_as_short_as_they_can_be():
    names = ["model.adapter.r", "model.lr", "trainer.lr", "data.r2"]
    assert list(short_names(names).values()) == ["r", "model.lr", "trainer.lr", "r2"]


# ---- conclusions ---------------------------------------------------------------------------------


def test_what_is_beyond_noise_and_what_is_not_is_said_first(invented):
    [one] = invented.sets
    first = one.conclusions[0]
    assert first.startswith("r=16 has the lowest loss, ")
    assert "cannot be told apart from r=8" in first
    assert "r=4 and r=2 are worse, beyond noise" in first
    assert any("r=8 has the fewest trainable parameters: 72,000" in s for s in one.conclusions)
    assert any(s.startswith("All 4 are better than the untouched base") for s in one.conclusions)
    assert any("Noise floor" in s and "3 seeds a group" in s for s in one.conclusions)


def test_a_clear_winner_is_named_with_its_lead():
    [one] = invented_comparison({4: 1.4, 8: 1.2}).sets
    assert one.conclusions[0].startswith("r=8 is best, beyond noise: loss 1.1")
    assert "r=4, is worse by 0.1" in one.conclusions[0]
    assert "perplexity" in one.conclusions[0]


def test_without_several_seeds_nothing_is_called_best():
    [one] = invented_comparison({4: 1.2, 8: 1.2, 16: 1.2}, seeds=(0,)).sets
    assert "which is best is not known" in one.conclusions[0]
    assert not any("is best" in s.replace("is best is not", "") for s in one.conclusions)
    assert any("run --seeds 0,1,2" in s for s in one.conclusions)
    assert not any("fewest trainable" in s for s in one.conclusions)


def test_equal_groups_are_not_told_apart():
    [one] = invented_comparison({4: 1.2, 8: 1.2, 16: 1.2}).sets
    assert one.conclusions[0].startswith("No difference between the 3 groups is beyond noise.")


def test_a_group_that_is_no_better_than_the_base_is_named():
    [one] = invented_comparison({4: 3.2, 8: 3.0}, spread=0.001).sets
    [told] = [s for s in one.conclusions if "untouched base" in s and "exact" not in s]
    assert told.startswith("r=8 is better than the untouched base")
    assert "r=4" in told.partition(";")[2]


# ---- the files -----------------------------------------------------------------------------------


def test_the_page_has_all_parts_and_asks_nobody(invented):
    page = comparison_page(invented)
    for heading in ("Results", "Differences beyond noise", "Answers side by side", "Runs and"):
        assert f">{heading}" in page
    assert page.index("r=16 has the lowest loss") < page.index("<h2")
    assert "A note &lt;of&gt; some kind." in page
    assert "number 3 &lt;of&gt; the list" in page
    assert "default-src 'none'" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "stopped: OutOfMemoryError; it has no checkpoint" in page
    assert "1 not evaluated: r=64/seed=0" in page
    assert page.count("<svg") >= 6


def test_a_varied_number_is_drawn_and_a_varied_word_is_not(invented):
    assert "The loss by r." in comparison_page(invented)
    words = [replace(g, options={"init": g.name}) for g in invented.sets[0].groups]
    other = replace(invented, sets=[replace(invented.sets[0], groups=words)])
    assert "The loss by init" not in comparison_page(other)


def test_fifty_runs_are_one_page():
    found = invented_comparison({r: 1.2 + 0.3 / r for r in range(1, 51)}, seeds=(0,), rows=60)
    page = comparison_page(found)
    assert page.count("r=50") > 3
    assert len(page) < 3_000_000
    assert "pairs differ beyond noise" in page
    assert len(as_csv(found).splitlines()) == 52
    assert as_markdown(found).startswith("# Comparison of 50 runs")


@pytest.mark.browser
def test_the_page_is_used_in_a_browser(invented, tmp_path):
    (tmp_path / "compare.html").write_text(comparison_page(invented))
    with open_browser() as browser:
        tab = browser.new_page(viewport={"width": 400, "height": 800})
        errors = []
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(f"file://{tmp_path}/compare.html")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 400
        results = tab.locator("section", has_text="Results").first
        order = results.locator("tbody td:first-child")
        assert order.first.inner_text() == "r=16"
        head = results.locator("th", has_text="loss").first.locator("button")
        head.click()
        head.click()
        assert order.first.inner_text() == "base (untouched)"  # the highest loss
        answers = tab.locator("section", has_text="Answers side by side").first
        answers.locator("input").fill("number 11 the list")
        assert answers.locator("tbody tr:visible").count() == 1
        answers.locator("button.open:visible").click()
        assert "the right answer" in answers.inner_text()
        assert "r=16/seed=0" in answers.inner_text()
        assert errors == []


def test_markdown_begins_with_the_conclusion(invented):
    text = as_markdown(invented)
    assert text.index("**r=16 has the lowest loss") < text.index("| group |")
    assert "| r=8 | " in text
    assert "| r=64/seed=0 | stopped: OutOfMemoryError; it has no checkpoint |" in text


def test_the_plots_that_markdown_shows_are_files_that_can_be_read_by_themselves(invented, tmp_path):
    (tmp_path / "compare-9.9.svg").write_text("of an older comparison")
    write_comparison(invented, tmp_path)
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (tmp_path / "compare.md").read_text())
    assert {file.name for file in tmp_path.glob("*.svg")} == set(shown)
    assert len(shown) >= 2
    for name in shown:
        root = ElementTree.parse(tmp_path / name).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "background: white" in root.attrib["style"]


def test_csv_has_a_line_for_each_run_and_the_base(invented):
    lines = list(csv.DictReader(as_csv(invented).splitlines()))
    assert len(lines) == 12 + 1 + 1
    [base] = [line for line in lines if line["group"].startswith("base")]
    assert base["run"] == ""
    assert float(base["loss"]) > 3
    of_run = {line["run"]: line for line in lines}
    assert of_run["r=8/seed=1"]["r"] == "8"
    assert float(of_run["r=2/seed=0"]["to_best_low"]) > 0
    assert of_run["r=64/seed=0"]["loss"] == ""


def test_json_has_every_difference(invented):
    found = json.loads(json.dumps(as_json(invented)))
    [one] = found["sets"]
    assert len(one["differences"]) == 10
    assert {d["loss"]["beyond_noise"] for d in one["differences"]} == {True, False}
    assert found["not_evaluated"][0]["run"] == "r=64/seed=0"


def test_answers_are_gathered_by_what_they_say(invented):
    [one] = invented.sets
    for i in range(len(one.questions)):
        answers = answers_to(one, i)
        assert sum(len(names) for _, names in answers) == 12 + 1
        assert answers[-1][1] == ["base (untouched)"]
    assert 0 < disagreements(one) <= len(one.questions)


def test_a_folder_that_cannot_be_written_is_said(invented, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written.*--out"):
        write_comparison(invented, tmp_path / "file")


# ---- runs that were trained ----------------------------------------------------------------------


def test_trained_runs_are_compared_with_their_base(compared):
    [one] = compared.sets
    assert {group.name for group in one.groups} == {"r=1", "r=4", "base (untouched)"}
    assert one.groups[-1].is_base
    assert one.rows == 12
    assert compared.notes == []
    for group in one.groups[:-1]:
        assert [run.seed for run in group.runs] == [0, 1]
        mean = sum(run.loss for run in group.runs) / 2
        assert group.scores["loss"].value == pytest.approx(mean)
        for run in group.runs:
            assert run.loss == pytest.approx(run.record.summary["best_val_loss"], rel=1e-5)
        assert (
            group.facts["trainable_parameters"]
            == group.runs[0].record.summary["trainable_parameters"]
        )
        assert group.facts["adapter_bytes"] > 4 * group.facts["trainable_parameters"]
    assert one.bits_per_byte(1.0) == pytest.approx(one.tokens / one.bytes / 0.6931471805599453)


def test_what_the_base_forgets_is_compared_on_general_text(compared):
    [one] = compared.sets
    told = [sentence for sentence in one.conclusions if sentence.startswith("Forgetting: ")]
    assert len(told) == 2
    assert "loss on general text" in told[0]
    assert "the untouched base" in told[1]
    [base] = [group for group in one.groups if group.is_base]
    for group in one.groups[:-1]:
        change = group.to_base["general_text"].value
        means = [found.scores["general_text"].value for found in (group, base)]
        assert change == pytest.approx(means[0] - means[1])
    assert "general text (to the base)" in comparison_page(compared)
    assert "| general text |" in as_markdown(compared)
    assert "general_text" in as_csv(compared).splitlines()[0].split(",")


def test_runs_with_other_rows_are_not_compared_by_loss(folder, base, tmp_path):
    from tiny_run import fit

    rows = write_rows(tmp_path / "other.jsonl", 40, seed=3)
    shutil.copytree(folder / "r1-seed0", tmp_path / "one")
    fit(base, rows, tmp_path / "two", data={"val_fraction": 0.3}, max_steps=2)
    found = compare_runs([tmp_path / "one", tmp_path / "two"], answers=0, options=OPTIONS)
    assert len(found.sets) == 2
    assert "different rows or tokens" in found.notes[0]
    assert "--val FILE" in found.notes[0]
    assert "Set 2" in comparison_page(found)
    together = compare_runs([tmp_path], val=str(rows), answers=0, options=OPTIONS)
    assert len(together.sets) == 1


def test_runs_without_a_checkpoint_are_shown_and_stop_no_other(folder, tmp_path):
    shutil.copytree(folder / "r1-seed0", tmp_path / "good")
    shutil.copytree(folder / "r4-seed0", tmp_path / "bad", ignore=shutil.ignore_patterns("*.ckpt"))
    found = compare_runs([tmp_path], answers=0, options=OPTIONS)
    assert [run.name for run in found.left] == ["bad"]
    assert "it has no checkpoint" in found.left[0].status
    assert "bad" in comparison_page(found)
    with pytest.raises(UserError, match="no run can be evaluated: bad: it has no checkpoint"):
        compare_runs([tmp_path / "bad"], options=OPTIONS)


def test_points_of_a_sweep_that_never_trained_are_shown(folder, tmp_path):
    shutil.copytree(folder / "r1-seed0", tmp_path / "r=1")
    points = [
        {"name": "r=1", "status": "finished", "error": None},
        {"name": "r=99", "status": "failed", "error": "error: r must be smaller"},
        {"name": "r=4", "status": "pending", "error": None},
    ]
    (tmp_path / "r=99").mkdir()
    (tmp_path / "sweep.json").write_text(json.dumps({"points": points}))
    found = compare_runs([tmp_path], answers=0, options=OPTIONS)
    assert {run.name: run.status for run in found.left} == {
        "r=99": "failed: error: r must be smaller; it has not trained",
        "r=4": "pending; it has not trained",
    }


def test_a_repeated_seed_counts_once_and_is_said(folder, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(folder / "r1-seed0", tmp_path / name)
    found = compare_runs([tmp_path], answers=0, options=OPTIONS)
    assert "a and b have seed 0 and the same options, so they count as one run" in found.notes[0]
    assert found.sets[0].groups[0].seed_spread["loss"] is None


def test_another_loss_than_the_logged_one_is_said(folder, tmp_path):
    shutil.copytree(folder / "r1-seed0", tmp_path / "run")
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    (tmp_path / "run/summary.json").write_text(json.dumps({**summary, "best_val_loss": 0.5}))
    found = compare_runs([tmp_path], answers=0, options=OPTIONS)
    assert "run has a loss of" in found.notes[0]
    assert "has logged 0.5" in found.notes[0]


def test_prompts_of_a_file_are_answered_and_scored(folder, tmp_path):
    lines = [{"prompt": f"say {i}", "completion": f"ok {i}"} for i in range(5)]
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = compare_runs(
        [folder / "r1-seed0"], prompts=str(file), answers=3, metrics=["f1"], options=OPTIONS
    )
    [one] = found.sets
    assert one.questions == ["user: say 0", "user: say 1", "user: say 2"]
    assert one.references == ["ok 0", "ok 1", "ok 2"]
    assert 0 <= one.groups[0].scores["f1"].value <= 1
    (tmp_path / "asked.txt").write_text("hello\n")
    with pytest.raises(UserError, match="needs prompts with their right answers"):
        compare_runs(
            [folder / "r1-seed0"],
            prompts=str(tmp_path / "asked.txt"),
            metrics=["f1"],
            options=OPTIONS,
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["exact_mach"]}, "no metric exact_mach.*did you mean exact_match"),
        ({"metrics": ["likelihood_accuracy"]}, "no score of answers"),
        ({"metrics": ["f1"], "answers": 0}, "--answers is 0"),
        ({"answers": -1}, "answers must be at least 0, got -1"),
        ({"rows": 0}, "rows must be at least 1, got 0"),
    ],
)
def test_a_wrong_option_is_named(folder, options, message):
    with pytest.raises(UserError, match=message):
        compare_runs([folder], **options)


def test_the_command_writes_all_files_and_says_the_conclusion(folder, compared, tmp_path, capsys):
    from peft_lightning.commands.compare import compare

    out = tmp_path / "out"
    given = {"answers": 4, "metrics": ["exact_match"], "max_new_tokens": 6, "device": "cpu"}
    compare(str(folder), out=str(out), **given)
    names = {"compare.html", "compare.md", "compare.csv", "compare.json", "answers.jsonl"}
    assert {path.name for path in out.iterdir() if path.suffix != ".svg"} == names
    printed = capsys.readouterr().out
    assert compared.sets[0].conclusions[0] in printed
    assert printed.splitlines()[-1] == str(out / "compare.html")
    assert len((out / "answers.jsonl").read_text().splitlines()) == 4
    compare(str(folder), out=str(out), json=True, **given)
    assert json.loads(capsys.readouterr().out)["sets"][0]["rows"] == 12
    with pytest.raises(UserError, match="give folders of runs"):
        compare()
