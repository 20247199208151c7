"""Each option of each own command with wrong values: what is right, or one line; no traceback."""

import importlib
import inspect
import json

import pytest

from cli_driver import drive
from peft_lightning import LoRA, save_adapter
from peft_lightning.__main__ import OWN_COMMANDS
from peft_lightning.base_model import load_base_model

WRONG = ["x", "-1", "0", "1e30", "nan", "", "[]", "/proc/x"]
WORDS = {  # what a command needs to get as far as its options
    "audit": ["--data.train", "{rows}", "--model.base_model", "{base}"],
    "card": ["adapter"],
    "check-serving": ["adapter"],
    "combine": ["combined", "adapter=1", "adapter=0.5"],
    "compare": ["run"],
    "export": ["adapter", "out.gguf", "--verify=false"],
    "extract": ["tuned", "extracted", "--base_model", "{base}", "--rank", "1"],
    "generate": ["--ckpt_path", "adapter", "--prompt", "say", "--max_new_tokens", "2"],
    "inspect": ["adapter"],
    "merge": ["adapter", "merged", "--verify=false"],
    "push": ["adapter", "me/x", "--base_model", "me/base", "--dry_run"],
    "report": ["run"],
    "resize": ["adapter", "resized", "--rank", "1"],
}
# plan, find-lr, sweep and submit take the options of fit: tests/cli/test_option_bounds.py; chat
# waits for its user
LEFT_OUT = {"chat", "find-lr", "plan", "submit", "sweep"}


def options_of(command):
    """Return the names of a command's options, without its words."""
    name = command.replace("-", "_")
    function = getattr(importlib.import_module(f"peft_lightning.commands.{name}"), name)
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds]


def test_every_command_is_tried_or_left_out_with_a_reason():
    assert WORDS.keys() | LEFT_OUT == OWN_COMMANDS.keys()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, base, rows):
    """A folder with an adapter and a finished run in it."""
    folder = tmp_path_factory.mktemp("options")
    model, adapter = load_base_model(str(base)), LoRA(r=2)
    adapter.attach(model)
    save_adapter(adapter, model, folder / "adapter")
    tuned = load_base_model(str(base), dtype="float32")
    for parameter in (p for p in tuned.model.layers.parameters() if p.ndim == 2):
        parameter.detach().mul_(1.1)
    tuned.save_pretrained(folder / "tuned")
    fit = ["fit", "--model.base_model", str(base), "--data.train", str(rows)]
    fit += ["--trainer.max_steps", "1", "--trainer.accelerator", "cpu"]
    ((status, _, errors),) = drive(folder, [[*fit, "--trainer.default_root_dir", "run"]])
    assert status == 0, errors
    return folder


def names(given, error):
    """Whether an error has the option or the value that was given."""
    option, _, value = given.removeprefix("--").partition("=")
    words = (option, option.replace("_", " "), value)
    return any(word and word in error for word in words)


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(WORDS))
def test_a_wrong_value_is_right_or_one_line_that_names_it(folder, base, rows, command):
    words = [word.format(base=base, rows=rows) for word in WORDS[command]]
    words += ["--overwrite"] if "overwrite" in options_of(command) else []
    tried = [(name, value) for name in options_of(command) for value in WRONG]
    lines = []
    for name, value in tried:
        given = f"--{name}" in words and words.index(f"--{name}")
        rest = words if given is False else [*words[:given], *words[given + 2 :]]
        rest = [word for word in rest if not word.startswith(f"--{name}=") and word != f"--{name}"]
        lines.append([command, *rest, f"--{name}={value}"])
    faults = []
    for line, (status, output, errors) in zip(lines, drive(folder, lines), strict=True):
        told = [part for part in errors.splitlines() if part.startswith("error: ")]
        is_one_line = len(told) == 1 and errors.splitlines()[-1] == told[0]
        if "Traceback" in output + errors or not (
            status == 0 or (status in (1, 2) and is_one_line)
        ):
            faults.append([line, status, errors[-500:]])
        elif status == 2 and not names(line[-1], told[0]):
            faults.append([line, status, told[0]])
    assert not faults, json.dumps(faults, indent=1)
