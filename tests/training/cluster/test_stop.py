"""A stop signal ends a command promptly at any moment, and its run goes on bit for bit."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import warm_python
from cli_driver import ENVIRONMENT, saved_step

HERE = Path(__file__).parents[2]
SOON = 60  # seconds, for machines with ten times too much to do; what is stopped would take 600

CONFIG = """
seed_everything: 0
model:
  base_model: BASE
  adapter: {class_path: LoRA, init_args: {r: 2, lora_dropout: 0.1}}
  learning_rate: 1.0e-2
data: {train: rows.jsonl, val: rows.jsonl, batch_size: 4, cache_dir: cache}
trainer:
  max_epochs: 2
  accelerator: cpu
  accumulate_grad_batches: 2
  enable_progress_bar: false
  logger: false
"""
EVERY_STEP = [
    *["--trainer.callbacks", "peft_lightning.training.checkpoint.AdapterCheckpoint"],
    *["--trainer.callbacks.every_n_steps", "1"],
]
AVERAGED = [
    *["--trainer.callbacks", "lightning.pytorch.callbacks.EMAWeightAveraging"],
    *["--trainer.callbacks.decay", "0.5"],
]
OWN_CHECKPOINT = ["--trainer.callbacks", "lightning.pytorch.callbacks.ModelCheckpoint"]
OWN_CHECKPOINT += ["--trainer.callbacks.monitor", "val/loss"]
UPPER_LAYER = ["--model.adapter.layers_to_transform", "[1]"]

# phase, or phase and what is used: signal, options, the step that is saved (None before the first)
FIT = {
    "tokenizing": (signal.SIGINT, [], None),
    "loading": (signal.SIGTERM, [], None),
    "outside Python": (signal.SIGTERM, [], None),
    "cached pass": (signal.SIGINT, ["--model.cache_hidden_states", "true", *UPPER_LAYER], None),
    "first step": (signal.SIGUSR1, [], None),
    "forward, terminal closed": (signal.SIGHUP, [], 2),
    "forward": (signal.SIGTERM, [], 2),
    "backward": (signal.SIGINT, [], 2),
    "recompute": (signal.SIGUSR1, ["--model.activation_checkpointing", "true"], 2),
    "optimizer step": (signal.SIGTERM, [], 3),
    "save": (signal.SIGINT, EVERY_STEP, 3),
    "validation": (signal.SIGINT, [], 3),
    "validation, averaged": (signal.SIGTERM, AVERAGED, 3),
    "backward, averaged": (signal.SIGTERM, AVERAGED, 2),
    "forward, own ModelCheckpoint": (signal.SIGTERM, OWN_CHECKPOINT, 2),
    "first samples": (signal.SIGTERM, ["--model.sample_prompts", "[say 1]"], None),
    "samples": (signal.SIGTERM, ["--model.sample_prompts", "[say 1]"], 3),
    "last validation": (signal.SIGTERM, ["--trainer.max_steps", "5"], 5),
}


def drive(scenarios):
    """Return what became of each scenario of ``stop_driver``."""
    done = warm_python.run(
        [HERE / "drivers" / "stop_driver.py"],
        env={**ENVIRONMENT, "PYTHONPATH": f"{HERE}:{HERE}/drivers:{HERE.parent}"},
        input=json.dumps(scenarios),
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, base, rows):
    folder = tmp_path_factory.mktemp("stop")
    (folder / "rows.jsonl").write_text(rows.read_text())
    (folder / "run.yaml").write_text(CONFIG.replace("BASE", str(base)))
    return folder


@pytest.fixture(scope="module")
def runs(folder):
    """Each phase's run as it was stopped, as it was resumed, and undisturbed."""

    def scenario(name, kind, more=(), **stop):
        root = f"{name}-{kind}".replace(" ", "-")
        args = ["fit", "--config", "run.yaml", "--trainer.default_root_dir", root, *more]
        return {"args": args, "folder": str(folder), **stop}

    scenarios = []
    for phase, (number, options, _) in FIT.items():
        cache = ["--data.cache_dir", f"cache {phase}"] if phase == "tokenizing" else []
        options = [*options, *cache]
        stop = {"phase": phase.partition(",")[0], "signals": [number]}
        scenarios += [
            scenario(phase, "stopped", options, **stop),
            scenario(phase, "stopped", [*options, "--ckpt_path", "last"]),
            scenario(phase, "whole", options),
        ]
    done = iter(drive(scenarios))
    return {phase: (next(done), next(done), next(done)) for phase in FIT}


@pytest.mark.parametrize("phase", FIT)
def test_a_signal_ends_a_run_promptly_with_its_status_and_one_line(phase, runs, folder):
    number, _, step = FIT[phase]
    stopped = runs[phase][0]
    assert stopped["status"] == 128 + number, stopped
    assert stopped["seconds"] < SOON
    lines = [line for line in stopped["errors"].splitlines() if number.name in line]
    assert len(lines) == 1, stopped["errors"]
    assert "Traceback" not in stopped["errors"]
    last = folder / f"{phase.replace(' ', '-')}-stopped" / "checkpoints" / "last.ckpt"
    if step is None:
        assert "before the first step" in lines[0]
    else:
        assert f"{number.name}: stopped at step {step}; {last} is saved" in lines[0]


@pytest.mark.parametrize("phase", FIT)
def test_a_run_that_was_stopped_within_a_phase_ends_as_an_undisturbed_one(phase, runs, folder):
    _, resumed, whole = runs[phase]
    assert resumed["status"] == whole["status"] == 0, resumed
    ours, theirs = (folder / f"{phase.replace(' ', '-')}-{kind}" for kind in ("stopped", "whole"))
    for name in ("last.ckpt", "best.ckpt"):
        tensors, wanted = (
            load_file(root / "checkpoints" / name / "adapter_model.safetensors")
            for root in (ours, theirs)
        )
        assert tensors.keys() == wanted.keys()
        assert all(torch.equal(tensors[key], wanted[key]) for key in wanted)
    assert saved_step(ours / "checkpoints/last.ckpt") == saved_step(
        theirs / "checkpoints/last.ckpt"
    )
    facts, wanted = (json.loads((root / "summary.json").read_text()) for root in (ours, theirs))
    for name in ("status", "steps", "epochs", "tokens", "best_val_loss"):
        assert facts[name] == wanted[name], name
    made_steps = phase != "last validation"
    for name in ("train/loss", "grad_norm", "val/loss")[0 if made_steps else 2 :]:
        assert facts["last"][name] == wanted["last"][name], name


def assert_stopped(result, number, line):
    assert result["status"] == 128 + number, result
    assert result["seconds"] < SOON
    lines = [text for text in result["errors"].splitlines() if number.name in text]
    assert lines == [f"{number.name}: stopped{line}"], result["errors"]
    assert "Traceback" not in result["errors"]


def scenario(folder, *args, phase="", number=signal.SIGINT, **more):
    found = {"folder": str(folder), "args": list(args), "phase": phase, "signals": [number]}
    return {**found, **more}


def test_generate_says_what_is_kept_and_goes_on_from_it(folder, base):
    command = ["generate", "--base_model", str(base), "--file", "rows.jsonl", "--batch_size", "4"]
    command += ["--max_new_tokens", "4", "--output"]
    cut, onward, whole, loading, unkept = drive(
        [
            scenario(folder, *command, "cut.jsonl", phase="answers"),
            scenario(folder, *command, "cut.jsonl"),
            scenario(folder, *command, "whole.jsonl"),
            scenario(folder, *command, "new.jsonl", phase="outside Python", number=signal.SIGTERM),
            scenario(folder, *command[:-1], phase="answers", number=signal.SIGUSR1),
        ]
    )
    kept = "; 8 of 24 answers are in cut.jsonl.part, the same command goes on from them"
    assert_stopped(cut, signal.SIGINT, kept)
    assert onward["status"] == whole["status"] == 0
    assert "8 answers are there already" in onward["errors"]
    assert (folder / "cut.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()
    assert not (folder / "cut.jsonl.part").exists()
    assert_stopped(loading, signal.SIGTERM, "")
    none = "; 8 of 24 answers were made, and none is kept without --output"
    assert_stopped(unkept, signal.SIGUSR1, none)


def test_predict_keeps_its_answers_and_goes_on_from_them(folder):
    def command(root, *more):
        command = ["predict", "--config", "run.yaml", "--data.predict", "rows.jsonl", *more]
        return [*command, "--model.predict_max_new_tokens", "4", "--trainer.default_root_dir", root]

    cut, other, onward, whole = drive(
        [
            scenario(folder, *command("p1"), phase="answers"),
            scenario(folder, *command("p2"), phase="answers"),
            scenario(folder, *command("p1")),
            scenario(folder, *command("p2", "--seed_everything", "1")),
        ]
    )
    kept = "; 8 of 24 answers are in {}/predictions.jsonl.part, the same command goes on from them"
    assert_stopped(cut, signal.SIGINT, kept.format("p1"))
    assert_stopped(other, signal.SIGINT, kept.format("p2"))
    assert onward["status"] == whole["status"] == 0, onward
    assert "8 answers are there already" in onward["errors"]
    assert "already" not in whole["errors"]  # the adapter is drawn anew, so is not the same
    lines = (folder / "p1/predictions.jsonl").read_text().splitlines()
    rows = (folder / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == [
        json.loads(row)["prompt"] for row in rows
    ]
    assert not (folder / "p1/predictions.jsonl.part").exists()


def test_ctrl_c_stops_an_answer_of_a_chat_and_sigterm_the_chat(folder, base):
    command = ["chat", "--base_model", str(base), "--max_new_tokens", "4"]
    stopped, ended, loading = drive(
        [
            scenario(folder, *command, phase="answer", input="say 1\n/reset\n"),
            scenario(folder, *command, phase="answer", input="say 1\n", number=signal.SIGTERM),
            scenario(folder, *command, phase="loading"),
        ]
    )
    assert stopped["status"] == 0
    assert stopped["seconds"] < SOON
    assert "stopped\nthe conversations are forgotten" in stopped["errors"]
    assert_stopped(ended, signal.SIGTERM, "")
    assert_stopped(loading, signal.SIGINT, "")


def test_a_second_ctrl_c_ends_a_save_at_once(folder):
    command = ["fit", "--config", "run.yaml", "--trainer.default_root_dir", "twice", *EVERY_STEP]
    twice = [signal.SIGINT, signal.SIGINT]
    [found] = drive([scenario(folder, *command, phase="save", signals=twice)])
    assert found["status"] == 130
    assert "stopped" not in found["errors"]
    assert saved_step(folder / "twice/checkpoints/last.ckpt") == 2
