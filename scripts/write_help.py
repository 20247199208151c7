"""Write the short help of fit, validate, test and predict, which is shown without heavy imports.

Usage: python scripts/write_help.py [--check]

The options and their descriptions are those of jsonargparse, so the file follows the docstrings of
CausalLMModule, SFTDataModule and the adapters. With --check, nothing is written: the exit status is
1 if the file is not up to date.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import textwrap

from docstring_parser import parse as parse_docstring
from jsonargparse import Namespace

from peft_lightning import CausalLMModule, SFTDataModule
from peft_lightning.adapters import Adapter
from peft_lightning.cli.class_lookup import options_of
from peft_lightning.cli.help import FILE, ONLY, PROG

WIDTH = 100

GENERAL = [
    ("-c, --config FILE", "YAML file; several are merged from left to right, options come on top."),
    (
        "--ckpt_path last|best|none|FOLDER",
        "fit continues from it bit for bit. none: from the beginning.",
    ),
    (
        "--weights_only false",
        "Unpickle all of a trusted checkpoint, which can run code.",
    ),
    ("--seed_everything INT", "Seed of every random generator (0)."),
    ("--print_config", "Print the whole configuration as YAML, and stop."),
    ("--debug", "Show the traceback of an error."),
]

FIT_ONLY = [
    ("--overwrite", "Replace the finished run in the folder of this one."),
    ("--verbose", "Say how every part of a step is computed."),
]

PREDICT_ONLY = [
    (
        "--adapter NAME=FOLDER",
        "Adapter to answer with, instead of --ckpt_path; may be given several times. A row's "
        "'adapter' names its own, 'base' is none.",
    ),
    ("--output FILE", "JSONL file to write (predictions.jsonl in the folder of the run)."),
]

# the most useful options of Lightning's Trainer, in fewer words than its own
TRAINER = [
    ("max_epochs INT", "Epochs to train (3, unless max_steps or max_time is given)."),
    ("max_steps INT", "Optimizer steps to train."),
    ("precision NAME", "auto (what suits the processor), 32-true, bf16-mixed, 16-mixed ..."),
    ("accumulate_grad_batches INT", "Batches in one optimizer step (1)."),
    ("gradient_clip_val FLOAT", "Largest norm of the gradient; null for any (1.0)."),
    ("accelerator NAME", "cpu, gpu, auto."),
    ("devices INT", "Processes or GPUs."),
    ("strategy NAME", "ddp, or another of Lightning."),
    ("val_check_interval NUMBER", "Validate after this share of an epoch, or number of batches."),
    ("log_every_n_steps INT", "Steps between two logged values (5)."),
    ("limit_train_batches NUMBER", "Share or number of the training batches to use."),
    ("limit_val_batches NUMBER", "Share or number of the validation batches to use."),
    ("default_root_dir FOLDER", "Where everything goes (runs/<name of the config file>)."),
    ("logger CLASS", "Logger by class path (CSV and TensorBoard)."),
    ("callbacks+ CLASS", "A further callback by class path."),
]


def short_help() -> str:
    """Return the text of the file."""
    lines = [f"usage: {PROG} {{command}} --config FILE [--OPTION VALUE ...]", "", "{summary}", ""]
    lines += [*_table("general", GENERAL)[:-1]]
    for command, options in (("fit", FIT_ONLY), ("predict", PREDICT_ONLY)):
        lines += [ONLY.format(command) + line for line in _table("", options)[1:-1]]
    lines += ["", *_table("model", _options(CausalLMModule, "--model."))]
    lines.append("adapters: --model.adapter NAME, or --model.adapter.OPTION VALUE for one option")
    for adapter in sorted(_leaves(Adapter), key=lambda c: (c.__module__, c.__name__)):
        lines.append(f"  {adapter.__name__}: {(adapter.__doc__ or '').splitlines()[0]}")
        names = ", ".join(field.name for field in dataclasses.fields(adapter))
        lines += _wrapped(names or "(no options)", "      ")
    lines += ["  all about one: --model.adapter.help NAME", ""]
    lines += _table("data", _options(SFTDataModule, "--data."))
    lines += _table("trainer", [(f"--trainer.{name}", text) for name, text in TRAINER])
    lines += [f"Every option, also Lightning's rare ones: {PROG} {{command}} --help all", ""]
    return "\n".join(lines)


def _options(cls: type, prefix: str) -> list[tuple[str, str]]:
    """Return each option of a class with the first sentence on it and its default value."""
    # jsonargparse also takes a text of the section "Attributes" for an argument of that name
    params = [p for p in parse_docstring(cls.__doc__ or "").params if p.args[0] == "param"]
    own = {p.arg_name: p.description for p in params}
    rows = []
    for name, action in options_of(cls).items():
        text = " ".join((own.get(name) or action.help or "").split())
        first = re.split(r"(?<=[a-z\d)`\"])\. ", text)[0].rstrip(".")
        default = action.default
        if isinstance(default, Namespace | dict):  # the class of an adapter or a schedule
            default = default["class_path"].rpartition(".")[2] + "()"
        value = "required" if action.required else str(default)
        rows.append((prefix + name, f"{first}." if value == "None" else f"{first} ({value})"))
    return rows


def _leaves(cls: type) -> set[type]:
    """Return the classes of this package below ``cls`` that have no subclasses in it."""
    own = [sub for sub in cls.__subclasses__() if sub.__module__.startswith("peft_lightning.")]
    return {leaf for sub in own for leaf in _leaves(sub)} or {cls}


def _table(title: str, rows: list[tuple[str, str]]) -> list[str]:
    lines, wide = [f"{title}:"], max(len(name) for name, _ in rows)
    for name, text in rows:
        lines += _wrapped(text, " " * (wide + 3), f"  {name:<{wide}} ")
    return [*lines, ""]


def _wrapped(text: str, indent: str, first: str | None = None) -> list[str]:
    first = indent if first is None else first
    lines = textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=indent)
    return lines or [first.rstrip()]


if __name__ == "__main__":
    text = short_help()
    if "--check" in sys.argv[1:]:
        sys.exit(text != FILE.read_text("utf-8"))
    FILE.write_text(text, "utf-8")
