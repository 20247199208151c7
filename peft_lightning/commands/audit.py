"""``python -m peft_lightning audit``: what ``fit`` would train on, before it does."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import Any

from peft_lightning.messages import UserError, check_choice

FINDINGS = 1  # exit status
MARK = "<!-- audit -->"  # in the first line of a page


def audit(
    data: str | None = None,
    /,
    *fit: str,
    rows: int = 5,
    tokenizer: str | None = None,
    color: str = "auto",
    html: str | None = None,
    json: bool | str = False,
    seed: int = 0,
) -> None:
    """Show what fit would train on: rows with their tokens in the loss, counts and findings.

    The exit status is 0 if the data are clean, 1 if something was found, 2 for an error.
    docs/audit.md says what is looked for.

    Args:
        data: The training rows, as for data.train; without, those of the config.
        fit: Options of fit, such as --config FILE or --data.max_length 512.
        rows: Number of rows to show: the first, and a random choice.
        tokenizer: Hub id or folder of a tokenizer, if no base model is given.
        color: Whether tokens in the loss are green: auto (at a terminal), always, or never.
        html: File to write the report to as an HTML page.
        json: Print the report as JSON, or write it to a file whose name ends in .json.
        seed: Seed of the choice of rows.
    """
    from peft_lightning.cli.config_index import configs_first
    from peft_lightning.data.audit.run import audit_rows
    from peft_lightning.data.audit.terminal import report_text
    from peft_lightning.reports.audit_page import audit_page

    check_choice("--color", color, ("auto", "always", "never"))
    if rows < 0:
        raise UserError(f"--rows must be at least 0, got {rows}")
    written = {
        "--html": (html, ".html"),
        "--json": (json if isinstance(json, str) else None, ".json"),
    }
    for option, (name, suffix) in written.items():
        _check_output(option, name, suffix)
    module, datamodule = _parts(data, configs_first(list(fit)), tokenizer)
    report = audit_rows(
        lambda tokenize, log: datamodule.open_splits("fit", tokenize, log),
        datamodule.row_tokenizer(module),
        datamodule.row_options,
        rows,
        seed,
    )
    text = json_module.dumps(report.to_json(), indent=1)
    if html:
        _write(html, audit_page(report, str(datamodule.paths["train"])))
    if isinstance(json, str):
        _write(json, text + "\n")
    if json is True:
        print(text)
    else:
        print(report_text(report, color == "always" or (color == "auto" and sys.stdout.isatty())))
    if not report.is_clean:
        raise SystemExit(FINDINGS)


def _parts(data: str | None, args: list[str], tokenizer: str | None) -> tuple[Any, Any]:
    """Return the module and the data that ``fit`` would build."""
    from peft_lightning.cli.config_index import read_arguments
    from peft_lightning.cli.fit_parts import fit_parts

    index = read_arguments(args)
    if data is not None:
        args = [*args, "--data.train", data]
    elif index.get("data.train") is None:
        raise UserError("no data to look at: audit FILE, or audit --config FILE with data.train")
    if tokenizer is not None:
        args = [*args, "--data.tokenizer", tokenizer]
        if not index.all("model.base_model", "model.init_from"):
            args = [*args, "--model.base_model", tokenizer]
    return fit_parts(args)


def _check_output(option: str, name: str | None, suffix: str) -> None:
    """Raise UserError if a file is not one to write a report to, such as the data themselves."""
    if name is None:
        return
    file = Path(name)
    if file.suffix != suffix:
        raise UserError(f"{option} {name}: the name of the file must end in {suffix}")
    if file.is_file() and not _is_report(file):
        raise UserError(f"{option} {name}: there is such a file, and it is no report of audit")


def _is_report(file: Path) -> bool:
    with file.open(encoding="utf-8", errors="replace") as content:
        start = content.read(200)
    return MARK in start or start.startswith('{\n "rows": [')


def _write(name: str, text: str) -> None:
    from peft_lightning.files import atomic_text

    Path(name).parent.mkdir(parents=True, exist_ok=True)
    atomic_text(name, text)
    print(f"written to {name}", file=sys.stderr)
