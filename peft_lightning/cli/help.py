"""The short help of fit, validate, test and predict, read from the sources without running them."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

PROG = "python -m peft_lightning"
PACKAGE = Path(__file__).parents[1]
WIDTH = 100

GENERAL = [
    ("-c, --config FILE", "YAML file; several are merged from left to right, options come on top."),
    (
        "--ckpt_path last|best|none|FOLDER",
        "Checkpoint; fit continues from it bit for bit. none: from the beginning, untrained.",
    ),
    ("--seed_everything INT", "Seed of every random generator (0)."),
    ("--print_config", "Print the whole configuration as YAML, and stop."),
    ("--debug", "Show the traceback of an error."),
]

PREDICT = [
    (
        "--adapter NAME=FOLDER",
        "Adapter to answer with, instead of --ckpt_path; may be given several times. A row's "
        "'adapter' names its own, 'base' is none.",
    ),
]

# Lightning's most useful ones in our words; a test holds the names against the Trainer
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


def command_help(command: str, summary: str) -> str:
    """Return the help of a Trainer command: the options by group, the common ones first.

    Args:
        command: fit, validate, test or predict.
        summary: What it does, in one line.
    """
    lines = [f"usage: {PROG} {command} --config FILE [--OPTION VALUE ...]", "", summary, ""]
    lines += _table("general", GENERAL + PREDICT * (command == "predict"))
    lines += _table("model", _signature(PACKAGE / "module.py", "CausalLMModule", "--model."))
    lines.append("adapters: --model.adapter NAME, or --model.adapter.OPTION VALUE for one option")
    for name, doc, options in _dataclasses(PACKAGE / "adapters", "Adapter"):
        lines += [f"  {name}: {doc}"]
        lines += _wrapped(", ".join(options) or "(no options)", "      ")
    lines.append("  all about one: --model.adapter.help NAME")
    lines.append("")
    data = _signature(PACKAGE / "data" / "datamodule.py", "SFTDataModule", "--data.")
    lines += _table("data", data)
    lines += _table("trainer", [(f"--trainer.{name}", doc) for name, doc in TRAINER])
    lines.append(f"Every option, also Lightning's rare ones: {PROG} {command} --help all")
    return "\n".join(lines)


def _table(title: str, rows: list[tuple[str, str]]) -> list[str]:
    lines = [f"{title}:"]
    for name, doc in rows:
        lines += _wrapped(doc, " " * 40, f"  {name:<37} ")
    return [*lines, ""]


def _wrapped(text: str, indent: str, first: str | None = None) -> list[str]:
    first = indent if first is None else first
    lines = textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=indent)
    return lines or [first.rstrip()]


def _signature(file: Path, class_name: str, prefix: str) -> list[tuple[str, str]]:
    """Return (option, sentence) for each argument of a class's constructor."""
    cls = _classes(file)[class_name]
    init = next(n for n in cls.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    docs = argument_docs(ast.get_docstring(cls) or "") | argument_docs(
        ast.get_docstring(init) or ""
    )
    arguments = init.args.args[1:] + init.args.kwonlyargs
    missing = len(init.args.args) - len(init.args.defaults) - 1
    defaults = [None] * missing + [*init.args.defaults, *init.args.kw_defaults]
    rows = []
    for argument, default in zip(arguments, defaults, strict=True):
        doc = docs.get(argument.arg, "").rstrip(".")
        value = "required" if default is None else ast.unparse(default).strip("'")
        rows.append((prefix + argument.arg, f"{doc} ({value})" if value != "None" else doc + "."))
    return rows


def _classes(file: Path) -> dict[str, ast.ClassDef]:
    return {n.name: n for n in ast.parse(file.read_text()).body if isinstance(n, ast.ClassDef)}


def argument_docs(docstring: str) -> dict[str, str]:
    """Return the first sentence on each argument of a Google-style docstring."""
    match = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", docstring, re.MULTILINE | re.DOTALL)
    if match is None:
        return {}
    entries = re.findall(r"^    (\w+): (.*?)(?=^    \S|\Z)", match[1], re.MULTILINE | re.DOTALL)
    return {
        name: re.split(r"(?<=[a-z\d)`\"])\. ", " ".join(text.split()))[0] for name, text in entries
    }


def _dataclasses(folder: Path, base: str) -> list[tuple[str, str, list[str]]]:
    """Return (name, first line of the docstring, fields) of each subclass without subclasses."""
    classes = {n: c for file in sorted(folder.rglob("*.py")) for n, c in _classes(file).items()}
    bases = {n: [ast.unparse(b) for b in c.bases] for n, c in classes.items()}
    found = []
    for name, cls in classes.items():
        line = [name]  # from the class up to ``base``
        while line[-1] != base and (above := [b for b in bases[line[-1]] if b in classes]):
            line.append(above[0])
        if line[-1] != base or any(name in others for others in bases.values()):
            continue
        fields = [
            n.target.id
            for one in reversed(line)
            for n in classes[one].body
            if isinstance(n, ast.AnnAssign)
            and isinstance(n.target, ast.Name)
            and "ClassVar" not in ast.unparse(n.annotation)
        ]
        found.append((name, (ast.get_docstring(cls) or "").split("\n")[0], fields))
    return found
