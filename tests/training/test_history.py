"""history.jsonl: the values of one run, each step once, whatever has interrupted it."""

import csv
import errno
import json
import os
import signal
from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import CSVLogger

from peft_lightning import CausalLMModule, SFTDataModule
from peft_lightning.training.checkpoint import AdapterCheckpoint
from peft_lightning.training.history import History
from peft_lightning.training.throughput import Throughput
from recorded import SaveAfter
from tiny_run import fit

DATA = {"val_fraction": 0.25}  # 18 rows: 5 steps an epoch


def lines_of(root):
    return [json.loads(line) for line in (root / "history.jsonl").read_text().splitlines()]


def steps(root, kind="train"):
    return [line["step"] for line in lines_of(root) if line["kind"] == kind]


def rows_of_csv(root):
    """Return the rows of the logger's newest file."""
    with max((root / "logs").glob("version_*/metrics.csv")).open() as file:
        return list(csv.DictReader(file))


def rows_of(logger):
    file = Path(logger.log_dir) / "metrics.csv"
    return list(csv.DictReader(file.read_text().splitlines())) if file.exists() else []


class Watch(Callback):
    """Writes down what the run itself knows of each step."""

    def __init__(self):
        self.seen = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pl_module.log("mine", float(trainer.global_step))
        self.seen[trainer.global_step] = float(outputs["loss"])


class StopAt(Callback):
    """Ends the run after a step, as a signal does: by an exception."""

    def __init__(self, step, error=KeyboardInterrupt):
        self.step, self.error = step, error

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise self.error


def stopped(*args, **options):
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        fit(*args, **options)


@pytest.fixture(scope="module")
def run(base, rows, tmp_path_factory):
    root = tmp_path_factory.mktemp("history") / "run"
    logger = CSVLogger(root, name="logs")
    options = {"data": DATA, "logger": logger, "log_every_n_steps": 4}
    trainer = fit(base, rows, root, callbacks=[watch := Watch()], **options)
    return trainer, watch, root


def test_a_line_every_n_steps_at_the_last_and_at_each_validation(run):
    _, _, root = run
    found = [(line["kind"], line["step"], line["epoch"]) for line in lines_of(root)]
    ends = [("train", 10, 2.0), ("val", 10, 2.0)]
    assert found == [("train", 4, 0.8), ("val", 5, 1.0), ("train", 8, 1.6), *ends]


def test_a_line_has_all_that_was_logged_and_how_far_the_run_was(run):
    trainer, _, root = run
    last = lines_of(root)[-2]
    assert last["metrics"]["mine"] == 10
    names = {"train/loss", "grad_norm", "lr", "tokens_per_second", "peak_memory_mib", "mine"}
    assert last["metrics"].keys() == names
    assert last["tokens"] == 2 * trainer.datamodule.sizes["train"]["tokens"]
    throughput = next(c for c in trainer.callbacks if isinstance(c, Throughput))
    assert last["seconds"] == round(throughput.seconds, 3)
    val = lines_of(root)[-1]
    assert val["metrics"]["val/loss"] == float(trainer.callback_metrics["val/loss"])


def test_the_loggers_get_the_last_step_too(run):
    _, _, root = run
    logged = [row for row in rows_of_csv(root) if row["train/loss"]]
    lines = [line for line in lines_of(root) if line["kind"] == "train"]
    assert [int(row["step"]) + 1 for row in logged] == [line["step"] for line in lines]
    for row, line in zip(logged, lines, strict=True):
        assert float(row["grad_norm"]) == line["metrics"]["grad_norm"]
    assert [int(row["epoch"]) for row in logged] == [0, 1, 1]


def without_times(values):
    """Return what two runs of the same steps have in common of a line or a row."""
    own = ("seconds", "tokens_per_second", "peak_memory_mib", "mine")
    return {name: value for name, value in values.items() if name not in own and value != ""}


class Signal(StopAt):
    """Sends this process a signal behind an optimizer step, which ends it in that batch's hook."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pass

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGUSR1)


@pytest.mark.parametrize("stops", [[4], [7], [5, 8], [1, 2, 4, 5, 9]])
@pytest.mark.parametrize("stop_at", [StopAt, Signal])
def test_a_stopped_and_resumed_run_has_logged_what_an_undisturbed_one_has(
    run, base, rows, tmp_path, stops, stop_at
):
    _, _, whole = run
    root = tmp_path / "run"
    options = {"data": DATA, "log_every_n_steps": 4}
    saves = AdapterCheckpoint(every_n_steps=1)
    last, curve = None, []
    for stop in stops:
        options["logger"] = CSVLogger(root, name="logs")
        stopped(base, rows, root, callbacks=[stop_at(stop), saves], ckpt_path=last, **options)
        curve += rows_of(options["logger"])
        last = str(root / "checkpoints/last.ckpt")
    assert steps(root)[-1] == stops[-1]
    options["logger"] = CSVLogger(root, name="logs")
    fit(base, rows, root, ckpt_path=last, callbacks=[saves], **options)
    found, expected = (
        [without_times({**line, **line["metrics"], "metrics": None}) for line in lines_of(folder)]
        for folder in (root, whole)
    )
    assert [line for line in found if line["step"] not in {*stops} - {4, 5, 8, 10}] == expected
    curve += rows_of(options["logger"])
    assert [*map(without_times, curve)] == [*map(without_times, rows_of_csv(whole))]


def test_a_run_that_goes_on_behind_its_limit_numbers_its_lines_on(base, rows, tmp_path):
    root = tmp_path / "run"
    last, numbers = None, []
    for limit in (2, 4, 5, 8):  # 5 is an epoch's end
        options = {"logger": CSVLogger(root, name="logs"), "log_every_n_steps": 1}
        options |= {"max_steps": limit, "max_epochs": -1}
        fit(base, rows, root, data=DATA, callbacks=[AdapterCheckpoint()], ckpt_path=last, **options)
        numbers += [int(row["step"]) for row in rows_of(options["logger"]) if row["train/loss"]]
        last = str(root / "checkpoints/last.ckpt")
    assert numbers == list(range(8))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_training_loss_is_the_mean_over_all_tokens_since_the_last_line(
    base, rows, tmp_path, accumulate
):
    class Sums(CausalLMModule):
        """Keeps the sums behind each micro-batch."""

        def nll(self, batch):
            nll, tokens = super().nll(batch)
            if self.training:
                sums.append((float(nll), float(tokens)))
            return nll, tokens

    sums = []
    options = {"log_every_n_steps": 4, "accumulate_grad_batches": accumulate, "max_steps": 10}
    options |= {"data": {"val_fraction": 0, "batch_size": 2}, "max_epochs": 3}
    fit(base, rows, tmp_path / "run", module_class=Sums, **options)
    lines = lines_of(tmp_path / "run")
    assert [line["step"] for line in lines] == [4, 8, 10]
    for line, begin in zip(lines, (0, 4, 8), strict=True):
        part = sums[begin * accumulate : line["step"] * accumulate]
        mean = sum(nll for nll, _ in part) / sum(tokens for _, tokens in part)
        assert line["metrics"]["train/loss"] == pytest.approx(mean, rel=1e-6)


def test_early_stopping_has_its_last_step(base, rows, tmp_path):
    root = tmp_path / "run"
    early = EarlyStopping("val/loss", patience=1, stopping_threshold=1e9)  # after one validation
    logger = CSVLogger(root, name="logs")
    fit(base, rows, root, data=DATA, callbacks=[early], logger=logger, log_every_n_steps=4)
    assert steps(root) == [4, 5]
    assert [int(r["step"]) for r in rows_of_csv(root) if r["train/loss"]] == [3, 4]


def test_a_run_goes_on_in_another_folder_with_the_lines_before(base, rows, tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    saves = [AdapterCheckpoint(every_n_steps=1), SaveAfter(3, first / "checkpoints/at3.ckpt")]
    options = {"data": DATA, "log_every_n_steps": 2}
    fit(base, rows, first, callbacks=saves, **options)
    fit(base, rows, second, max_steps=2)  # another run
    early = str(first / "checkpoints/at3.ckpt")
    fit(base, rows, second, ckpt_path=early, **options)
    assert steps(second) == steps(first) == [2, 4, 6, 8, 10]
    assert steps(second, "val") == [5, 10]
    assert lines_of(second)[0] == lines_of(first)[0]
    fit(base, rows, first, ckpt_path=early, max_epochs=1, **options)  # its own folder, cut short
    assert steps(first) == [2, 4, 5]


def test_a_new_run_in_a_folder_begins_a_new_file(base, rows, tmp_path):
    for _ in range(2):
        fit(base, rows, tmp_path / "run", data=DATA, log_every_n_steps=5, max_epochs=1)
    assert steps(tmp_path / "run") == [5]


def test_a_second_fit_of_a_trainer_goes_on_in_the_file(base, rows, tmp_path):
    root = tmp_path / "run"
    trainer = fit(base, rows, root, data=DATA, log_every_n_steps=2, max_epochs=1)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(trainer.lightning_module, trainer.datamodule)
    assert steps(root) == [2, 4, 5, 6, 8, 10]


def test_a_half_line_and_what_follows_it_is_written_again(base, rows, tmp_path):
    root = tmp_path / "run"
    options = {"data": DATA, "log_every_n_steps": 1}
    stopped(base, rows, root, callbacks=[StopAt(7)], **options)
    whole = (root / "history.jsonl").read_bytes()
    (root / "history.jsonl").write_bytes(whole[: whole.rindex(b'"step": 7') + 5])
    fit(base, rows, root, ckpt_path=str(root / "checkpoints/last.ckpt"), **options)
    assert steps(root) == list(range(1, 11))


@pytest.mark.parametrize("option", ["fast_dev_run", "barebones"])
def test_a_trial_run_writes_no_history(base, rows, tmp_path, option):
    if option == "fast_dev_run":
        fit(base, rows, tmp_path / "run", data=DATA, fast_dev_run=2)
    else:
        L.seed_everything(0, verbose=False)
        module = CausalLMModule(str(base), learning_rate=1e-2)
        data = SFTDataModule(str(rows), batch_size=4, cache_dir=str(tmp_path / "cache"), **DATA)
        trainer = L.Trainer(
            barebones=True, accelerator="cpu", max_steps=2, default_root_dir=tmp_path / "run"
        )
        trainer.fit(module, data)
    assert not (tmp_path / "run/history.jsonl").exists()


def test_a_full_disk_ends_no_training_and_its_lines_come_when_there_is_room(
    base, rows, tmp_path, monkeypatch, caplog
):
    root = tmp_path / "run"
    write = os.pwrite

    class Disk(Callback):
        """Has room for half a line at steps 3 and 4."""

        def on_train_batch_start(self, trainer, *args):
            is_full = trainer.global_step in (2, 3)
            monkeypatch.setattr(os, "pwrite", full if is_full else write)

    def full(descriptor, data, offset):
        write(descriptor, data[: len(data) // 2], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    caplog.set_level("INFO")
    fit(base, rows, root, data=DATA, callbacks=[Disk()], log_every_n_steps=1, max_epochs=1)
    assert steps(root) == [1, 2, 3, 4, 5]
    assert (
        caplog.text.count("history.jsonl cannot be written: No space left on device; training") == 1
    )


def test_a_value_that_is_no_number_is_null(tmp_path, base, rows):
    class Odd(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            pl_module.log("odd", float("nan"))

    fit(base, rows, tmp_path / "run", callbacks=[Odd()], max_steps=1)
    assert lines_of(tmp_path / "run")[0]["metrics"]["odd"] is None


def test_a_warning_is_a_line_with_its_text(base, rows, tmp_path):
    class Warns(Callback):
        def on_train_batch_end(self, trainer, *args):
            history = next(c for c in trainer.callbacks if isinstance(c, History))
            if trainer.global_step == 2:
                history.warn(trainer, "too hot", degrees=99.5)

    fit(base, rows, tmp_path / "run", callbacks=[Warns()], max_steps=3, log_every_n_steps=1)
    [line] = [x for x in lines_of(tmp_path / "run") if x["kind"] == "warning"]
    assert (line["step"], line["text"], line["metrics"]) == (2, "too hot", {"degrees": 99.5})
