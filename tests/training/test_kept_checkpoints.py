"""Which checkpoints a run keeps, by one option each, and how they get to the hub meanwhile."""

import json
import shutil
import threading
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import Callback

from cli_driver import drive
from peft_lightning import hub
from peft_lightning.files import remove_folder, require_undamaged
from peft_lightning.training.checkpoint import AdapterCheckpoint
from tiny_run import fit

ALWAYS = {"last.ckpt", "previous.ckpt", "best.ckpt"}


class Losses(Callback):
    def __init__(self):
        self.seen = {}

    def on_validation_end(self, trainer, pl_module):
        self.seen[trainer.global_step] = trainer.callback_metrics["val/loss"].item()


class CrashAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == self.step:
            raise RuntimeError("a crash")


def kept(root):
    """Return the steps of the checkpoints that are there, each whole, of the step in its name."""
    found = {}
    for folder in (root / "checkpoints").iterdir():
        require_undamaged(folder)
        if folder.name not in ALWAYS:
            step = json.loads((folder / "peft_lightning.json").read_text())["step"]
            assert folder.name == f"step={step}.ckpt"
            found[step] = folder
    assert {p.name for p in (root / "checkpoints").iterdir()} >= ALWAYS
    return sorted(found)


def run(base, rows, root, *callbacks, epochs=2, **options):
    """Train 6 steps an epoch, validated after every second; the loss goes up and down."""
    return fit(
        base,
        rows,
        root,
        callbacks=[AdapterCheckpoint(**{"every_n_steps": 2, **options.pop("keep")}), *callbacks],
        max_epochs=epochs,
        val_check_interval=2,
        module={"learning_rate": 1.0},
        **options,
    )


RULES = {
    "best": {"save_top_k": 3},
    "last": {"keep_last": 3},
    "every": {"every_n_train_steps": 5},
    "all": {"save_top_k": 2, "keep_last": 2, "every_n_train_steps": 9},
}


def expected(rule, losses):
    best = sorted(losses, key=lambda step: losses[step])
    last = sorted({*range(2, 13, 2), *losses} | ({9} if rule == "all" else set()))
    return {
        "best": sorted(best[:3]),
        "last": last[-3:],
        "every": [5, 10],
        "all": sorted({*best[:2], *last[-2:], 9}),
    }[rule]


@pytest.mark.parametrize("rule", RULES)
def test_a_run_keeps_what_the_rule_says_and_so_does_one_that_goes_on(base, rows, tmp_path, rule):
    losses = Losses()
    run(base, rows, tmp_path / "whole", losses, keep=RULES[rule])
    assert len(losses.seen) == 6
    assert kept(tmp_path / "whole") == expected(rule, losses.seen)
    root = tmp_path / "cut"
    with pytest.raises(RuntimeError, match="a crash"):
        run(base, rows, root, CrashAt(7), keep=RULES[rule])
    last = str(root / "checkpoints" / "last.ckpt")
    run(base, rows, root, keep=RULES[rule], ckpt_path=last)
    assert kept(root) == kept(tmp_path / "whole")


def test_a_kept_checkpoint_is_one_that_a_run_goes_on_from(base, rows, tmp_path):
    whole = run(base, rows, tmp_path / "run", keep={"every_n_train_steps": 5})
    path = str(tmp_path / "run" / "checkpoints" / "step=5.ckpt")
    again = run(base, rows, tmp_path / "again", keep={}, ckpt_path=path)
    ends = [trainer.lightning_module.state_dict() for trainer in (whole, again)]
    assert all((ends[0][name] == ends[1][name]).all() for name in ends[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save_top_k": 0}, "save_top_k must be at least 1, or -1 for all of them, got 0"),
        ({"keep_last": -2}, "keep_last must be at least 1, or -1 for all of them, got -2"),
        ({"every_n_train_steps": 0}, "every_n_train_steps must be at least 1, got 0"),
    ],
)
def test_a_number_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AdapterCheckpoint(**options)


def test_a_folder_that_is_removed_is_gone_as_a_whole_if_the_process_is_killed(
    tmp_path, monkeypatch
):
    folder = tmp_path / "step=5.ckpt"
    folder.mkdir()
    (folder / "a").touch()

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_folder(folder)
    [left] = tmp_path.iterdir()  # which the next run in the folder removes
    assert left.name.startswith(".step=5.ckpt.")
    assert left.name.endswith(".tmp")


def test_one_option_each_is_what_the_command_line_needs(base, rows, tmp_path):
    (tmp_path / "rows.jsonl").write_text(rows.read_text())
    line = ["fit", f"--model.base_model={base}", "--data.train=rows.jsonl", "--trainer.max_steps=4"]
    line += ["--data.cache_dir=cache", "--trainer.accelerator=cpu"]
    line += ["--trainer.callbacks+=AdapterCheckpoint", "--trainer.callbacks.every_n_train_steps=2"]
    [(status, _, errors)] = drive(tmp_path, [line])
    assert status == 0, errors
    assert kept(tmp_path / "runs" / "default") == [2, 4]


# ---- the hub ------------------------------------------------------------------------------------


class Hub:
    """Has the part of HfApi that is called, and may be slow or refuse."""

    uploads: list = []  # noqa: RUF012
    refusals = 0
    gate = None

    def create_repo(self, repo_id, *, private, exist_ok):
        assert private

    def repo_info(self, repo_id):
        return SimpleNamespace(private=True)

    def create_branch(self, repo_id, *, branch, exist_ok):
        pass

    def upload_folder(self, *, repo_id, folder_path, revision, commit_message):
        if Hub.gate is not None:
            assert Hub.gate.wait(60)
        if Hub.refusals:
            Hub.refusals -= 1
            raise ConnectionError("the line is dead")
        files = {p.name: p.read_bytes() for p in folder_path.iterdir()}
        Hub.uploads.append((repo_id, revision, commit_message, files))
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/{len(Hub.uploads)}")


@pytest.fixture
def server(monkeypatch):
    Hub.uploads, Hub.refusals, Hub.gate = [], 0, None
    monkeypatch.setattr(hub, "HfApi", Hub)
    monkeypatch.setattr(hub, "get_token", lambda: "hf_" + "x" * 30)
    monkeypatch.setattr(hub, "hub_answers", lambda: True)
    return Hub


@pytest.fixture
def named_base(base, monkeypatch):
    """The base under a name that looks like that of a repository."""
    monkeypatch.setattr(hub, "is_hub_id", lambda name: True)
    return base


def test_each_new_best_is_pushed_and_the_end_waits_for_it(named_base, rows, tmp_path, server):
    keep = {"push_to_hub": "me/parrot@trial"}
    run(named_base, rows, tmp_path / "run", keep=keep, epochs=1)
    assert server.uploads
    repo, revision, message, files = server.uploads[-1]
    assert (repo, revision) == ("me/parrot", "trial")
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    name = "adapter_model.safetensors"
    assert files[name] == (best / name).read_bytes()
    assert message == f"Step {json.loads(files['peft_lightning.json'])['step']}"
    assert "trainer_state.pt" not in files


def test_training_waits_for_no_upload_and_only_the_newest_waits_for_the_line(
    named_base, rows, tmp_path, server
):
    server.gate = threading.Event()

    class OpenAtTheEnd(Callback):
        def on_train_end(self, trainer, pl_module):
            assert trainer.global_step == 18
            assert server.uploads == []
            server.gate.set()

    options = {"push_to_hub": "me/parrot", "monitor": "val/loss"}
    trainer = fit(
        named_base,
        rows,
        tmp_path / "run",
        callbacks=[OpenAtTheEnd(), AdapterCheckpoint(**options)],
        max_epochs=3,
        module={"learning_rate": 1e-3},  # the loss falls in each epoch
    )
    assert trainer.global_step == 18
    assert [message for _, _, message, _ in server.uploads] == ["Step 6", "Step 18"]


def test_an_upload_that_fails_is_said_and_made_up_for(named_base, rows, tmp_path, server, caplog):
    server.refusals = 1
    with caplog.at_level("INFO"):
        fit(
            named_base,
            rows,
            tmp_path / "run",
            callbacks=[AdapterCheckpoint(push_to_hub="me/parrot")],
            data={"val_fraction": 0},
            max_epochs=1,
        )
    assert "not pushed to me/parrot: the line is dead; tried again" in caplog.text
    assert len(server.uploads) == 1  # at the end once more


def test_a_hub_that_is_gone_ends_no_run(named_base, rows, tmp_path, server):
    server.refusals = 100
    trainer = run(named_base, rows, tmp_path / "run", keep={"push_to_hub": "me/parrot"}, epochs=1)
    assert trainer.global_step == 6
    assert server.uploads == []


def test_what_can_never_be_pushed_is_refused_before_the_first_step(
    base, rows, tmp_path, server, monkeypatch
):
    keep = {"push_to_hub": "me/parrot"}
    with pytest.raises(ValueError, match="push_to_hub needs a base that others have"):
        run(base, rows, tmp_path / "run", keep=keep)
    with pytest.raises(ValueError, match="a repository is OWNER/NAME, got 'parrot'"):
        run(base, rows, tmp_path / "run", keep={"push_to_hub": "parrot"})
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(ValueError, match="there is no token for the hub"):
        run(base, rows, tmp_path / "run", keep=keep)
