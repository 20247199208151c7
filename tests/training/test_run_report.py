"""RunReport: the page of a run, from its start on, whatever ends it, and at no cost to training."""

import itertools
import json
import math
import re
from html.parser import HTMLParser

import pytest
import torch

from peft_lightning.commands.report import report
from peft_lightning.messages import UserError
from peft_lightning.reports.run_facts import read_facts
from peft_lightning.training import run_report
from peft_lightning.training.run_report import RunReport
from tiny_run import fit, write_rows

SAMPLES = {"sample_prompts": ["say 1", "say <b>2</b>"], "sample_max_new_tokens": 4}
QUICK = {"max_epochs": 1, "log_every_n_steps": 1}


class Watcher(RunReport):
    """Keeps each page that is written."""

    def __init__(self, **options):
        super().__init__(**options)
        self.pages = []

    def _write(self, trainer, status):
        super()._write(trainer, status)
        if self._folder is not None:
            self.pages.append((self._folder / "report.html").read_text())


class Text(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found = ""
        self.feed(page)

    def handle_data(self, data):
        self.found += data


def text_of(page):
    return re.sub(r"\s+", " ", Text(page).found)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files of rows, and one of validation."""
    folder = tmp_path_factory.mktemp("files")
    return [str(write_rows(folder / f"{n}.jsonl", 16, i)) for i, n in enumerate(("one", "two"))]


@pytest.fixture(scope="module")
def finished(base, files, tmp_path_factory):
    """A run that is over: its folder, and the pages that it has written one after the other."""
    root = tmp_path_factory.mktemp("runs") / "mine"
    watcher = Watcher(every_seconds=0)
    data = {"val_fraction": 0.2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_report, "MOST_OF_THE_TIME", math.inf)  # all that may be written is
        fit(base, files, root, module=SAMPLES, data=data, callbacks=[watcher], **QUICK)
    return root, watcher.pages


def test_a_finished_run_has_a_page_of_what_it_did(finished):
    root, _ = finished
    page = (root / "report.html").read_text()
    said = text_of(page)
    for heading in ("Loss", "Training", "Samples", "Rows of training", "Sizes and speed", "Files"):
        assert f">{heading}</h2>" in page
    assert "Finished; written at" in said
    assert "LORA on" in said
    assert "say <b>2</b>" in said
    summary = json.loads((root / "summary.json").read_text())
    assert f"{summary['trainable_parameters']:,}" in said
    assert f"{summary['steps']:,} of {summary['steps']:,}" in said
    assert "validation" in said
    assert 'href="checkpoints/best.ckpt/"' in page
    assert page.count("<svg") >= 4
    assert "<meta http-equiv=refresh" not in page


def test_the_first_page_is_there_before_the_first_step_and_reloads_itself(finished):
    _, pages = finished
    said = text_of(pages[0])
    assert "Running; last written at" in said
    assert "No loss has been logged yet." in said
    assert "steps0 of" in said.replace(" 0", "0")
    assert all("http-equiv=refresh content=30" in page for page in pages[:-1])
    assert len(pages) >= 3


def test_the_rows_are_those_of_each_source_with_their_tokens_in_the_loss(finished, files):
    root, _ = finished
    rows = read_facts(root).rows
    assert {row.source for row in rows} == set(files)
    for row in rows:
        told = "".join(t.text for t in row.tokens if t.weight)
        whole = "".join(t.text for t in row.tokens)
        assert re.fullmatch(r"(ok )+\d+<\|im_end\|>\n?", told)
        assert whole.startswith("<|im_start|>user\nsay ")
    page = (root / "report.html").read_text()
    assert page.count("<h3 class=mono>") == len(rows)
    assert 'class="loss"' in page


def test_a_run_trains_the_same_bits_with_and_without_its_page(finished, base, files, tmp_path):
    root, _ = finished
    other = tmp_path / "off"
    off = RunReport(enabled=False)
    fit(base, files, other, module=SAMPLES, data={"val_fraction": 0.2}, callbacks=[off], **QUICK)
    assert not (other / "report.html").exists()
    assert not (other / "report.json").exists()
    one, two = (
        (r / "checkpoints" / "last.ckpt" / "adapter_model.safetensors").read_bytes()
        for r in (root, other)
    )
    assert one == two


def test_the_command_writes_the_same_page_anew(finished, tmp_path, capsys):
    root, _ = finished
    report(str(root), out=str(tmp_path / "again.html"), json=True)
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "run": str(root),
        "status": "finished",
        "page": str(tmp_path / "again.html"),
    }

    def timeless(file):
        return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "", file.read_text())

    assert timeless(tmp_path / "again.html") == timeless(root / "report.html")
    with pytest.raises(UserError, match=r"again.txt: the name of the file must end in .html"):
        report(str(root), out="again.txt")


def test_a_run_of_before_there_were_pages_gets_one(finished, tmp_path):
    root, _ = finished
    old = tmp_path / "old"
    old.mkdir()
    for name in ("summary.json", "run.json"):
        (old / name).write_bytes((root / name).read_bytes())
    report(str(old))
    said = text_of((old / "report.html").read_text())
    assert "No loss has been logged yet." in said
    assert "LORA on" in said


class Breaks(RunReport):
    """Raises after some steps."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        if trainer.global_step == 2:
            raise self.error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("loss <i>is</i> bad\nmore"), "Stopped: RuntimeError: loss <i>is</i> bad;"),
        (KeyboardInterrupt(), "Stopped: KeyboardInterrupt;"),
        (SystemExit(3), "Stopped: SystemExit: 3;"),
    ],
)
def test_the_page_of_a_run_that_stops_says_so(base, rows, tmp_path, error, told):
    with pytest.raises(BaseException, match=r".*") as raised:
        fit(base, rows, tmp_path / "run", callbacks=[Breaks(error)], **QUICK)
    assert isinstance(raised.value, type(error) | SystemExit)
    page = (tmp_path / "run" / "report.html").read_text()
    assert told in text_of(page)
    assert "<meta http-equiv=refresh" not in page


@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"barebones": True}])
def test_a_trial_run_has_no_page(base, rows, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    quick = {"max_epochs": 1} if "barebones" in options else QUICK
    if "barebones" in options:
        options = {**options, "enable_progress_bar": None, "logger": None}
        options |= {"num_sanity_val_steps": None, "enable_model_summary": None}
    fit(base, rows, tmp_path / "run", **quick, **options)
    assert not list(tmp_path.rglob("report.*"))


def test_a_page_that_cannot_be_written_ends_no_training_and_is_said_once(
    base, rows, tmp_path, monkeypatch
):
    said = []
    monkeypatch.setattr(run_report, "rank_zero_info", said.append)
    root = tmp_path / "run"
    (root / "report.html").mkdir(parents=True)  # a folder is in its place
    (root / "report.html" / "file").touch()
    trainer = fit(base, rows, root, callbacks=[RunReport(every_seconds=0)], **QUICK)
    assert trainer.global_step == 6
    assert len(said) == 1
    assert "report.html cannot be written" in said[0]
    assert "training goes on" in said[0]


def test_a_page_that_takes_long_is_written_less_often(base, rows, tmp_path, monkeypatch):
    """A hundredth of the time: after a writing of 2 s the next is due 200 s later."""
    now = [0.0]

    class Clock:
        @staticmethod
        def monotonic():
            return now[0]

    monkeypatch.setattr(run_report, "time", Clock)
    written = []

    def slow(path, text):
        now[0] += 2.0
        written.append(now[0])

    monkeypatch.setattr(run_report, "atomic_text", slow)

    class Passes(RunReport):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            now[0] += 60.0

    fit(base, rows, tmp_path / "run", callbacks=[Passes()], max_epochs=2)  # 12 steps
    between = [b - a for a, b in itertools.pairwise(written[:-1])]  # the last is that of the end
    assert between
    assert all(passed >= 200 for passed in between)


def test_own_batches_have_a_page_of_what_there_is(base, tmp_path):
    """Without a data module there are no rows to show."""
    from lightning.pytorch import Trainer

    from peft_lightning import CausalLMModule, LoRA
    from tiny_run import flat_batch

    trainer = Trainer(
        max_steps=4,
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        callbacks=[RunReport(num_rows=0)],
    )
    batches = torch.utils.data.DataLoader([flat_batch([5, 6], i) for i in range(4)], None)
    trainer.fit(CausalLMModule(str(base), LoRA(r=2), learning_rate=1e-3), batches)
    page = (tmp_path / "report.html").read_text()
    assert "Finished" in text_of(page)
    assert "Rows of training" not in page


@pytest.mark.parametrize("options", [{"every_seconds": -1}, {"num_rows": -2}])
def test_a_wrong_option_is_named(options):
    (name,) = options
    with pytest.raises(UserError, match=f"RunReport: {name} must be at least 0, got"):
        RunReport(**options)
